"""Functions that a configuration names and gives options to: growth's operators and policies.

    @operator("dropin", preserves_function=True)
    def dropin(model, factor, *, steps: PositiveInt = 100):
        \"\"\"New blocks behind a gate that opens little by little.

        steps: optimizer steps until the gate is open
        \"\"\"

    growth.operator = "dropin"                              dropin(model, factor, steps=100)
    growth.operator = {"name": "dropin", "steps": 5}        dropin(model, factor, steps=5)
    growth.operator = {"name": "dropin", "steps": -1}       growth.operator.steps = -1: input should be greater than 0

The keyword-only arguments are the options, their annotations and defaults say what is valid, and the line in the
docstring that begins with an argument's name documents it.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import update_wrapper
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, Field, create_model

from dsllm.errors import ConfigError
from dsllm.registry import Registry
from dsllm.section import Section, describe, validate

Problems = Callable[..., Iterator[tuple[str, str]]]


class Part:
    """A function with its name in the configuration and the section of its options."""

    __name__: str

    def __init__(self, name: str, function: Callable[..., Any], problems: Problems | None = None):
        """`problems(**options)` yields options that do not fit together, as `Section.problems` does."""
        self.name = name
        self.function = function
        self.options = options_of(function, problems)
        update_wrapper(self, function)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)


P = TypeVar("P", bound=Part)


class _Options(Section):
    """A section whose fields are documented by the function's docstring: there is no class's source to read."""

    model_config = ConfigDict(use_attribute_docstrings=False)


def options_of(function: Callable[..., Any], problems: Problems | None = None) -> type[Section]:
    """The section made of a function's keyword-only arguments. Raises `TypeError` if one is not annotated."""
    hints = get_type_hints(function, include_extras=True)
    texts = _documented(inspect.getdoc(function) or "")
    fields: dict[str, Any] = {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if name not in hints:
            raise TypeError(f"{function.__qualname__}: its option {name} needs a type annotation")
        default = ... if argument.default is inspect.Parameter.empty else argument.default
        fields[name] = (hints[name], Field(default, description=texts.get(name)))
    section: type[Section] = create_model(function.__name__, __base__=_Options, **fields)
    if problems is None:
        return section
    return type(function.__name__, (section,), {"problems": lambda self: problems(**dict(self))})


def resolve(registry: Registry[P], value: Any, at: str) -> tuple[P | None, dict[str, Any], list[str]]:
    """The part that a configuration's `value` names, its complete options, and every problem as a line.

    `value` is a name, or a mapping with the key `name` and options beside it; `at` is its dotted place.
    """
    options: dict[str, Any] = {}
    if isinstance(value, Mapping):
        options = {str(key): option for key, option in value.items() if key != "name"}
        value = value.get("name")
    if not isinstance(value, str):
        return None, {}, [f"{at} = {value!r}: not a name; take one of {', '.join(registry.names())}"]
    try:
        part = registry[value]
    except ConfigError as error:
        return None, {}, [f"{at} = {value}: {str(error).partition(': ')[2] or error}"]
    if not isinstance(part, Part):
        return None, {}, [f"{at} = {value}: is no {registry.kind}; put @{registry.kind}(...) over it"]
    section, problems = validate(part.options, options, at)
    return part, {} if section is None else section.model_dump(), problems


def describe_parts(registry: Registry[Any], at: str) -> Iterator[str]:
    """What `--help` says of a registry: each part by name, the first line of its documentation, and its options."""
    for name in registry.names():
        part = registry[name]
        yield f"  --{at}.name {name}"
        yield f"      {(inspect.getdoc(part) or '').partition(chr(10))[0]}"
        yield from (f"  {line}" for line in describe(part.options, at))


def _documented(text: str) -> dict[str, str]:
    """`{"steps": "until the gate is open"}` of a docstring with the line `steps: until the gate is open`."""
    found = re.findall(r"^(\w+): (.+(?:\n[ \t]+.+)*)", text, re.MULTILINE)
    return {name: " ".join(what.split()) for name, what in found}
