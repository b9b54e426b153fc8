"""Operators and policies as a configuration names them."""

import pytest
from pydantic import PositiveInt

from dsllm.growth.parts import Part, describe_parts, options_of, resolve
from dsllm.registry import OPERATORS, POLICIES, Registry


def test_a_name_alone_has_the_default_options():
    part, options, problems = resolve(OPERATORS, "dropin", "growth.operator")
    assert part is OPERATORS["dropin"]
    assert options == {"steps": 500, "kind": "scalar", "seed": 0, "levels": None}
    assert problems == []


def test_options_stand_beside_the_name():
    _, options, _ = resolve(OPERATORS, {"name": "dropin", "steps": 5}, "growth.operator")
    assert options["steps"] == 5


@pytest.mark.parametrize(
    "value, lines",
    [
        (
            {"name": "dropin", "steps": -1, "knd": "scalar"},
            [
                "growth.operator.steps = -1: input should be greater than 0",
                "growth.operator.knd: no such key; did you mean growth.operator.kind?",
            ],
        ),
        ("interpos", ["growth.operator = interpos: no such operator; did you mean interpose?"]),
        ({"steps": 3}, ["growth.operator = None: not a name; take one of dropin, interpose, lateral"]),
        (3, ["growth.operator = 3: not a name; take one of dropin"]),
        ("json:JSONEncoder", ["growth.operator = json:JSONEncoder: is no operator; put @operator(...) over it"]),
        ("no_such:thing", ["growth.operator = no_such:thing: cannot be imported"]),
    ],
)
def test_every_problem_is_a_line_with_its_place(own_names, value, lines):
    part, _, problems = resolve(OPERATORS, value, "growth.operator")
    assert part is None or problems
    assert len(problems) == len(lines)
    for problem, line in zip(problems, lines, strict=True):
        assert problem.startswith(line)


def test_an_option_without_a_type_is_the_authors_mistake():
    def nameless(model, factor, *, steps=3):
        pass

    with pytest.raises(TypeError, match="its option steps needs a type annotation"):
        options_of(nameless)


def test_an_option_without_a_default_is_asked_for():
    def demanding(model, factor, *, steps: PositiveInt):
        """Needs to be told.

        steps: how many
            there are
        """

    registry = Registry("operator", {})
    registry.register("demanding")(Part("demanding", demanding))
    assert resolve(registry, "demanding", "at")[2] == ["at.steps: missing; how many there are"]


@pytest.mark.parametrize("registry", [OPERATORS, POLICIES], ids=lambda registry: registry.kind)
def test_help_names_each_part_and_documents_each_option(registry):
    text = "\n".join(describe_parts(registry, f"growth.{registry.kind}"))
    for name in registry.names():
        assert f"--growth.{registry.kind}.name {name}" in text
        for option, field in registry[name].options.model_fields.items():
            assert field.description, f"{name}: {option}"
            assert field.description in text
