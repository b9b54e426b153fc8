"""Every operator, held against the same properties on real tensors."""

from fnmatch import fnmatchcase

import pytest
import torch

from dsllm.config import LoRAConfig
from dsllm.errors import ConfigError
from dsllm.growth.merge import merge_plan
from dsllm.growth.operators import Growth, operator
from dsllm.growth.plan import changed, deepened, make_plan
from dsllm.growth.transforms import Rule
from dsllm.models.growable import PARTS
from dsllm.models.progressive import Progressive, ProgressiveConfig
from dsllm.registry import OPERATORS
from tests.growth.applying import grown, logits, moved, small

A, B, C, D, E, F = range(6)
LEVELS = {"name": "conv_attention"}
ONE_LEVEL = {**LEVELS, "strides": [], "widths": [16], "encoder": [], "middle": 3, "decoder": []}

# operator, options, model, factor, φ and how often each block is used
CASES = [
    ("untie", {}, {"n_layer": 12, "uses": 4}, 2, (A, A, B, B, C, C), 2),
    ("untie", {}, {"n_layer": 12, "uses": 4}, 4, (A,) * 4 + (B,) * 4 + (C,) * 4, 1),
    ("untie", {}, {"n_layer": 6, "uses": [4, 2]}, 2, (A, A, B, B), [2, 2, 1, 1]),
    ("interpose", {}, {}, 2, (A, A, B, B, C, C), 1),
    ("interpose", {}, {"n_layer": 6, "uses": [4, 2]}, 2, (A, A, B, B), [4, 4, 2, 2]),
    ("stack", {}, {}, 2, (A, B, C, A, B, C), 1),
    ("stack", {}, {"n_layer": 2}, 4, (A, B) * 4, 1),
    ("middle", {}, {}, 2, (A, B, B, B, B, C), 1),
    ("middle", {}, {"n_layer": 6}, 2, (A, B, C, D, B, C, D, B, C, D, E, F), 1),
    ("middle", {"group": 2}, {"n_layer": 6}, 2, (A, B, C, D, C, D, E, F), 1),
    ("middle", {"group": 3}, {}, 2, (A, B, C, A, B, C), 1),
    ("zero_init", {}, {}, 2, (A, A, B, B, C, C), 1),
    ("zero_init", {}, {"n_layer": 4, "uses": 2}, 3, (A, A, A, B, B, B), 2),
    ("random", {}, {}, 2, (A, None, B, None, C, None), 1),
    ("random", {"levels": [1]}, LEVELS, 3, (A, B, None, None, C, D, E, None, None, F), None),
    ("dropin", {}, {}, 2, (A, A, B, B, C, C), 1),
    ("dropin", {"kind": "channel", "steps": 4, "seed": 3}, {"n_layer": 2}, 3, (A, A, A, B, B, B), 1),
    ("mixture", {}, {}, 2, (A, A, B, B, C, C), 1),
    ("mixture", {"coefficients": "orthogonal"}, {}, 2, (A, A, B, B, C, C), 1),
    ("mixture", {"coefficients": "random", "seed": 5}, {}, 3, (A, A, A, B, B, B, C, C, C), 1),
    ("lateral", {}, {}, 2, (A, B, C), 1),
    ("lateral", {"rank": 3, "freeze": False}, {"n_layer": 4, "uses": 2}, 2, (A, B), 2),
    ("interpose", {"levels": [0]}, {}, 2, (A, A, B, B, C, C), 1),
    # Of several levels: A0 B1 C2 D2 E1 F0.
    ("interpose", {}, LEVELS, 2, (A, A, B, B, C, C, D, D, E, E, F, F), None),
    ("interpose", {"levels": [1]}, LEVELS, 3, (A, B, B, B, C, D, E, E, E, F), None),
    ("zero_init", {}, LEVELS, 2, (A, A, B, B, C, C, D, D, E, E, F, F), None),
    *(("zero_init", {"levels": [n]}, LEVELS, 2, only, None) for n, only in enumerate([
        (A, A, B, C, D, E, F, F), (A, B, B, C, D, E, E, F), (A, B, C, C, D, D, E, F),
    ])),
    *(("dropin", {"levels": [n], "steps": 4}, LEVELS, 2, only, None) for n, only in enumerate([
        (A, A, B, C, D, E, F, F), (A, B, B, C, D, E, E, F), (A, B, C, C, D, D, E, F),
    ])),
    ("dropin", {"levels": [0, 2], "kind": "channel"}, LEVELS, 3, (A, A, A, B, C, C, C, D, D, D, E, F, F, F), None),
    ("middle", {"group": 2}, LEVELS, 2, (A, B, C, D, C, D, E, F), None),
    ("stack", {}, ONE_LEVEL, 2, (A, B, C, A, B, C), None),
]  # fmt: skip
LORA = LoRAConfig(rank=4)


def case_id(case: object) -> str | None:
    return str(case) if isinstance(case, str) else None


def over(cases: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name, options, structure, factor, sources, uses", cases, ids=case_id)


each_operator = over(CASES)
each_operator_with_adapters = over([case for case in CASES if OPERATORS[case[0]].takes_adapters])
each_repeated_operator = over([case for case in CASES if case[0] != "lateral"])


def adapters_of(name: str) -> list[LoRAConfig | None]:
    return [None, LORA] if OPERATORS[name].takes_adapters else [None]


def grow(name, options, structure, factor, lora=None, optimizer_state="copy"):
    """A small model, the plan of its growth at step 100, and the grown model."""
    model = small(**structure)
    growth = OPERATORS[name](model.config, factor, **options)
    plan = make_plan(growth, model.config, "a checkpoint", optimizer_state, lora, step=100)
    return model, plan, grown(plan, model)


def test_every_registered_operator_is_held_against_these_properties():
    assert {name for name, *_ in CASES} == set(OPERATORS.names())


@each_operator
def test_blocks_come_from_where_the_operator_says(name, options, structure, factor, sources, uses):
    before = small(**structure).config
    growth = OPERATORS[name](before, factor, **options)
    assert growth.sources == sources
    assert getattr(growth.model, "uses", None) == uses
    assert growth.model.n_layer == len(growth.model.executed)
    behind = [next(s for s in reversed(sources[: block + 1]) if s is not None) for block in range(len(sources))]
    assert growth.model.block_places == tuple(before.block_places[source] for source in behind)


@each_operator
def test_every_tensor_is_what_its_rule_makes_of_the_source(name, options, structure, factor, sources, uses):
    for lora in adapters_of(name):
        model, plan, target = grow(name, options, structure, factor, lora)
        before = dict(model.named_parameters())
        for parameter_name, parameter in target.named_parameters():
            rule = plan.tensors[parameter_name]
            if rule.is_copy:
                assert parameter.equal(before[rule.sources[0]])
            elif rule.transform == "zero":
                assert not parameter.any()
        for block, source in enumerate(sources):
            norm = target.blocks[block].norm_1.weight
            assert norm.equal(torch.ones_like(norm) if source is None else model.blocks[source].norm_1.weight)


@each_operator
def test_the_function_is_preserved_exactly_where_the_operator_says_so(name, options, structure, factor, sources, uses):
    for lora in adapters_of(name):
        model, plan, target = grow(name, options, structure, factor, lora)
        same = logits(target).equal(logits(model))
        assert same == plan.preserves_function == OPERATORS[name].preserves_function
        assert logits(target).isfinite().all()


@each_operator
def test_a_parameter_without_gradient_is_one_that_was_declared(name, options, structure, factor, sources, uses):
    for lora in adapters_of(name):
        _, plan, target = grow(name, options, structure, factor, lora)
        target.train()
        if (gate := target.config.gate) is not None and gate.kind == "scalar":
            target.set_step(
                gate.start + 1
            )  # a scalar gate opens with the first step; of channels it may be that none does
        ids = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(2))
        target(ids[:, :-1], ids[:, 1:]).loss.backward()
        for parameter_name, parameter in target.named_parameters():
            dead = parameter.grad is None or not parameter.grad.any()
            if parameter.requires_grad:
                assert dead == plan.is_dead_at_start(parameter_name), parameter_name


@each_operator
def test_moments_follow_the_copies_as_asked(name, options, structure, factor, sources, uses):
    for state in ("copy", "zero", "asymmetric"):
        _, plan, _ = grow(name, options, structure, factor, None, state)
        given = {tensor: plan.moments_from(tensor) for tensor in plan.tensors}
        for tensor, source in given.items():
            copied = plan.tensors[tensor].is_copy
            assert source is None or (copied and source == plan.tensors[tensor].sources[0])
            assert not (copied and state == "copy" and source is None)
        if state == "zero":
            assert not any(given.values())
        if state == "asymmetric":
            heirs = [source for source in given.values() if source]
            assert len(heirs) == len(set(heirs))
            assert set(heirs) == {r.sources[0] for r in plan.tensors.values() if r.is_copy}


@each_operator_with_adapters
def test_copies_share_a_frozen_base_where_they_begin_alike(name, options, structure, factor, sources, uses):
    _, _, target = grow(name, options, structure, factor, LORA)
    for i, first in enumerate(target.blocks):
        for j, second in enumerate(target.blocks):
            pairs = [(first.get_submodule(part).weight, second.get_submodule(part).weight) for part in PARTS]
            alike = all(a.equal(b) for a, b in pairs)
            assert all((a is b) == alike for a, b in pairs), f"blocks {i} and {j}"
    assert not target.blocks[0].mlp.down.weight.requires_grad
    assert len({id(block.norm_1.weight) for block in target.blocks}) == len(sources)


@each_repeated_operator
def test_a_grown_model_grows_again_once_it_is_merged(name, options, structure, factor, sources, uses):
    _, _, first = grow(name, options, structure, factor, *adapters_of(name)[-1:])
    moved(first)
    first.set_step(10_000)
    if first.config.unsettled:
        plan = merge_plan(first.config, "x", step=10_000)
        settled = grown(plan, first)
        assert (logits(settled) - logits(first)).abs().max() < 1e-4
    else:
        settled = first
    again = OPERATORS["interpose"](settled.config, 2)
    assert len(make_plan(again, settled.config, "y").tensors) > len(list(settled.parameters()))


def test_no_channel_of_a_new_block_comes_through_its_gate_at_the_step_of_growth():
    model, plan, target = grow("dropin", {"kind": "channel", "steps": 4}, {}, 2)
    assert plan.model_after["gate"]["start"] == 100
    target.train()
    target.set_step(100)
    assert target(torch.arange(16)[None]).logits.equal(model(torch.arange(16)[None]).logits)
    target.set_step(102)
    assert not target(torch.arange(16)[None]).logits.equal(model(torch.arange(16)[None]).logits)


def test_mixture_begins_as_interposed_blocks_bit_for_bit():
    _, _, mixed = grow("mixture", {}, {}, 2)
    _, _, interposed = grow("interpose", {}, {}, 2)
    assert logits(mixed).equal(logits(interposed))


def test_new_coefficients_are_orthogonal_or_random_and_the_same_wherever_they_are_made():
    for coefficients in ("orthogonal", "random"):
        options = {"coefficients": coefficients, "seed": 5}
        _, _, first = grow("mixture", options, {}, 2)
        _, _, second = grow("mixture", options, {}, 2)
        vectors = torch.stack([block.mlp.up.coefficients for block in first.blocks])
        assert vectors.equal(torch.stack([block.mlp.up.coefficients for block in second.blocks]))
        new = vectors[1::2]  # the old blocks' stand between them
        assert vectors[::2].equal(torch.eye(3))
        assert new.norm(dim=1).allclose(torch.ones(3))
        assert (new @ new.T).allclose(torch.eye(3), atol=1e-6) == (coefficients == "orthogonal")
        other = torch.stack([block.attention.qkv.coefficients for block in first.blocks])[1::2]
        assert not new.allclose(other)


@pytest.mark.parametrize(
    "name, options, structure, factor, message",
    [
        ("untie", {}, {"n_layer": 12, "uses": 4}, 3, r"growth.factor = 3: untie .* model.uses = 4; take 2 or 4"),
        ("untie", {}, {"n_layer": 6, "uses": [4, 2]}, 4, r"growth.factor = 4: untie .*\[4, 2\]; take 2"),
        ("untie", {}, {}, 2, r"growth.factor = 2: untie .* start with model.uses above 1, or take interpose"),
        ("stack", {}, {}, 1, "growth.factor = 1: nothing grows by it; take 2 or more"),
        ("middle", {"group": 4}, {}, 2, "growth.operator.group = 4: the model has 3 distinct blocks; take 3 or less"),
        ("interpose", {}, {}, 10_000, "model.n_layer = 30000"),
        ("interpose", {"levels": [1]}, {}, 2, r"levels = \[1\]: no blocks on level 1; take some of 0, or null for all"),
        ("zero_init", {"levels": []}, {}, 2, r"growth.operator.levels = \[\]: names no level; take some of 0"),
        ("dropin", {"levels": [2, 9]}, LEVELS, 2, "no blocks on level 9; take some of 0, 1, 2, or null for all"),
        (
            "interpose",
            {"levels": [0]},
            {**LEVELS, "encoder": [0, 1], "decoder": [0, 1]},
            2,
            "no blocks on level 0; take some of 1, 2",
        ),
        (
            "interpose",
            {},
            {**LEVELS, "encoder": [0, 0], "middle": 0, "decoder": [0, 0]},
            2,
            "model.name = conv_attention has no blocks to copy",
        ),
        (
            "stack",
            {},
            LEVELS,
            2,
            "growth.operator = stack: would make new block 1, in the encoder of level 0, from old block 1, in "
            "the encoder of level 1; take interpose, zero_init, dropin or random",
        ),
        ("middle", {}, LEVELS, 2, "new block 2, in the encoder of level 1, from old block 2, in the middle of level 2"),
        ("untie", {}, LEVELS, 2, "growth.operator = untie: needs model.uses, which model.name = conv_attention does"),
        ("mixture", {}, LEVELS, 2, "growth.operator = mixture: needs model.mixture, which"),
        ("lateral", {}, LEVELS, 2, "growth.operator = lateral: needs model.lateral, which"),
        ("lateral", {"rank": 99}, {}, 2, "model.lateral"),
    ],
)
def test_what_does_not_fit_the_layers_is_named_with_a_cure(name, options, structure, factor, message):
    with pytest.raises(ConfigError, match=message):
        OPERATORS[name](small(**structure).config, factor, **options)


def test_a_user_adds_an_operator_in_a_few_lines(own_names):
    @operator("mirror", preserves_function=False)
    def mirror(model: ProgressiveConfig, factor: int, *, rounds: int = 1) -> Growth:
        """ABC → ABCCBA."""
        blocks = range(model.distinct_blocks)
        return deepened(model, [*blocks, *reversed(blocks)] * rounds)

    model = small()
    plan = make_plan(OPERATORS["mirror"](model.config, 2), model.config, "x", lora=LORA)
    target = grown(plan, model)
    assert [block.norm_1.weight[0].item() for block in target.blocks[:3]] == [
        block.norm_1.weight[0].item() for block in reversed(target.blocks[3:])
    ]
    assert target.config.bases == [0, 1, 2, 2, 1, 0]
    assert plan.operator == "mirror" and not plan.preserves_function


def test_a_users_operator_is_known_by_its_module_and_name(own_names, tmp_path, monkeypatch):
    (tmp_path / "my_growth.py").write_text(
        "from dsllm.growth import Growth, deepened, operator\n"
        "@operator('last_twice', preserves_function=False)\n"
        "def last_twice(model, factor):\n"
        "    blocks = range(model.distinct_blocks)\n"
        "    return deepened(model, [*blocks, blocks[-1]])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    growth = OPERATORS["my_growth:last_twice"](small().config, 2)
    assert growth.sources == (A, B, C, C)
    assert growth.operator == "last_twice"


@pytest.mark.parametrize(
    "rules",
    [
        {"blocks.9.norm_1.weight": Rule(("norm.weight",))},
        {"norm.weight": Rule(("no.such",))},
        {"norm.weight": Rule(("wte.weight",))},
    ],
)
def test_a_rule_that_does_not_fit_the_models_is_named(rules):
    model = small().config
    with pytest.raises(ConfigError, match=r"operator mine: .*(norm\.weight|norm_1\.weight)"):
        make_plan(Growth(model, (A, B, C), tensors=rules, operator="mine"), model, "x")


def test_a_rule_may_name_a_shared_tensor_by_any_of_its_names():
    model = small().config
    plan = make_plan(Growth(model, (A, B, C), tensors={"wte.weight": Rule(("head.weight",))}), model, "x")
    assert plan.tensors["wte.weight"].sources == ("wte.weight",)


def test_a_new_block_begins_at_the_models_own_initialisation():
    model = small()
    growth = Growth(changed(model.config, n_layer=4), (A, B, C, None))
    plan = make_plan(growth, model.config, "x")
    new = [name for name, rule in plan.tensors.items() if rule.is_new]
    assert new and all(fnmatchcase(name, "blocks.3.*") for name in new)
    assert isinstance(grown(plan, model), Progressive)
