"""Repeated blocks: one function through every growth, exact sets of what trains, copies in one piece of memory."""

import re
from fnmatch import fnmatchcase

import pytest
import torch

from dsllm.models import build_model
from dsllm.models.gpt2 import GPT2
from dsllm.models.growable import PARTS
from dsllm.models.lora import merged
from dsllm.models.progressive import Progressive, ProgressiveConfig
from dsllm.section import validate
from tests.models.conftest import SMALL


def outside(model):
    """The tensors that lie in no block."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("blocks.")}


def blocks_of(model, sources):
    """Tensors of blocks of which block j is a copy of block sources[j] of the model."""
    blocks = [model.blocks[source].state_dict() for source in sources]
    return {f"blocks.{j}.{name}": tensor for j, block in enumerate(blocks) for name, tensor in block.items()}


def copied(progressive, model, uses, sources):
    """A model whose block j, used uses[j] times, is a copy of block sources[j] of the given one."""
    n_layer = uses * len(sources) if isinstance(uses, int) else sum(uses)
    out = progressive(n_layer=n_layer, uses=uses)
    out.load_state_dict(outside(model) | blocks_of(model, sources))
    return out


# One function.


@pytest.mark.parametrize("settings", [{}, {"positions": "learned"}, {"window": 5}], ids=str)
def test_with_each_block_used_once_it_is_gpt2_bit_for_bit(small, progressive, ids, settings):
    gpt2, model = small(n_layer=4, **settings), progressive(**settings)
    model.load_state_dict(gpt2.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in gpt2.named_parameters()]
    assert model(ids[:, :-1]).logits.equal(gpt2(ids[:, :-1]).logits)
    for each in (gpt2, model):
        each(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
    assert all(a.grad.equal(b.grad) for a, b in zip(gpt2.parameters(), model.parameters(), strict=True))
    assert model.flops_per_token(16) == gpt2.flops_per_token(16)


def test_it_begins_with_gpt2s_weights_under_the_same_seed():
    models = []
    for name in ("gpt2", "progressive"):
        torch.manual_seed(4)
        models.append(build_model(MODELS_SECTIONS[name](**SMALL)))
    assert isinstance(models[0], GPT2) and isinstance(models[1], Progressive)
    assert all(a.equal(b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


MODELS_SECTIONS = {"gpt2": GPT2.Config, "progressive": ProgressiveConfig}


def test_untying_into_copies_changes_no_bit(progressive, ids):
    tied = progressive(n_layer=12, uses=4)
    inputs = ids[:, :-1]
    expected = tied(inputs).logits
    half = copied(progressive, tied, 2, [0, 0, 1, 1, 2, 2])
    whole = copied(progressive, half, 1, [j // 2 for j in range(12)])
    uneven = copied(progressive, tied, [4, 1, 3, 4], [0, 1, 1, 2])
    assert [m.config.distinct_blocks for m in (tied, half, whole, uneven)] == [3, 6, 12, 4]
    assert all(model(inputs).logits.equal(expected) for model in (half, whole, uneven))


def test_a_repeated_blocks_gradient_is_the_sum_of_its_copies(progressive, ids):
    tied = progressive(uses=2)
    apart = copied(progressive, tied, 1, [0, 0, 1, 1])
    for model in (tied, apart):
        model(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
    for name, parameter in tied.blocks[1].named_parameters():
        copies = [apart.blocks[j].get_parameter(name).grad for j in (2, 3)]
        torch.testing.assert_close(parameter.grad, copies[0] + copies[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("freeze", ["matrices", "attention", "all"])
def test_fresh_adapters_change_no_bit(progressive, ids, freeze):
    plain = progressive(uses=2)
    torch.manual_seed(0)
    config = ProgressiveConfig(**{**SMALL, "n_layer": 4, "uses": 2, "lora": {"rank": 5, "freeze": freeze}})
    adapted = Progressive(config)
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert missing and not unexpected and all("lora" in name for name in missing)
    assert adapted(ids[:, :-1]).logits.equal(plain(ids[:, :-1]).logits)


@pytest.mark.parametrize("freeze", ["matrices", "attention", "all"])
def test_merged_adapters_give_the_same_loss_and_logits(ids, freeze):
    torch.manual_seed(0)
    section = {**SMALL, "n_layer": 4, "uses": 2}
    adapted = Progressive(ProgressiveConfig(**section, lora={"rank": 5, "freeze": freeze}))
    fresh = adapted(ids[:, :-1]).logits
    for name, parameter in adapted.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.02)
    state = adapted.state_dict()
    for name in [name for name in state if name.endswith("lora_A")]:
        module = name.removesuffix(".lora_A")
        weight, a, b = state[f"{module}.weight"], state.pop(name), state.pop(f"{module}.lora_B")
        parts = PARTS[module.split(".", 2)[2]]
        state[f"{module}.weight"] = merged(weight, a, b, adapted.config.lora.scale, parts)
    plain = Progressive(ProgressiveConfig(**section))
    plain.load_state_dict(state)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    logits = adapted(inputs).logits
    assert (logits - fresh).abs().max() > 0.01
    assert (plain(inputs).logits - logits).abs().max() < 1e-6
    assert abs(plain(inputs, targets=targets).loss - adapted(inputs, targets=targets).loss) < 1e-6


def test_a_shut_gate_leaves_its_blocks_out_and_an_open_one_is_none(progressive, ids):
    inputs = ids[:, :-1]
    for kind in ("scalar", "channel"):
        gated = progressive(gate={"blocks": [1, 3], "start": 10, "steps": 10, "kind": kind})
        without = copied(progressive, gated, 1, [0, 2])
        open_ = copied(progressive, gated, 1, [0, 1, 2, 3])
        for step, same in ((0, without), (10, without), (20, open_), (999, open_)):
            gated.set_step(step)
            assert gated(inputs).logits.equal(same(inputs).logits)


def test_one_hot_mixtures_are_the_blocks_that_their_templates_come_from(progressive, ids):
    plain, mixture = progressive(n_layer=2), progressive(mixture={"templates": 2})
    sources, state = (0, 1, 1, 0), outside(plain)
    for name, tensor in blocks_of(plain, sources).items():
        _, j, module, kind = re.fullmatch(r"(blocks)\.(\d+)\.(.+)\.(.+)", name).groups()
        if module in PARTS and kind == "weight":
            state[f"blocks.{j}.{module}.coefficients"] = torch.eye(2)[sources[int(j)]]
            for k in range(2):
                state[f"blocks.{j}.{module}.template_{k}"] = plain.blocks[k].get_parameter(f"{module}.weight")
        else:
            state[name] = tensor
    mixture.load_state_dict(state)
    inputs = ids[:, :-1]
    assert mixture(inputs).logits.equal(copied(progressive, plain, 1, sources)(inputs).logits)


# What trains, and at which rate.

FROZEN = {
    "matrices": [
        "blocks.*.attention.*.weight",
        "blocks.*.attention.*.bias",
        "blocks.*.mlp.*.weight",
        "blocks.*.mlp.*.bias",
    ],
    "attention": ["blocks.*.attention.*.weight", "blocks.*.attention.*.bias"],
    "all": ["*weight", "*bias"],
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_what_rests_is_exactly_what_was_asked(progressive, ids, freeze):
    model = progressive(lora={"rank": 3, "freeze": freeze}, bases=[0, 0, 0, 1])
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert frozen == {name for name in names if any(fnmatchcase(name, pattern) for pattern in FROZEN[freeze])}
    adapted = {name.rpartition(".")[0].split(".", 2)[2] for name in names if name.endswith("lora_B")}
    assert adapted == {name for name in PARTS if freeze != "attention" or name.startswith("attention")}
    model(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in model.parameters())


def test_adapters_have_groups_of_their_own_without_decay(progressive):
    model = progressive(lora={"rank": 3, "lr_scale_a": 2.0, "lr_scale_b": 16.0})
    groups = {group["name"]: group for group in model.parameter_groups(0.1)}
    assert {n: (g["weight_decay"], g.get("lr_scale", 1)) for n, g in groups.items()} == {
        "decay": (0.1, 1),
        "no_decay": (0.0, 1),
        "lora_A": (0.0, 2.0),
        "lora_B": (0.0, 16.0),
    }
    for kind in ("lora_A", "lora_B"):
        expected = {id(p) for n, p in model.named_parameters() if n.endswith(kind)}
        assert {id(p) for p in groups[kind]["params"]} == expected


# Copies in one piece of memory.


@pytest.mark.parametrize("freeze", FROZEN)
def test_copies_keep_frozen_tensors_as_one_and_trained_ones_apart(progressive, freeze):
    model = progressive(lora={"rank": 3, "freeze": freeze}, bases=[7, 2, 7, 2])
    for name, parameter in model.blocks[0].named_parameters():
        other, third = model.blocks[2].get_parameter(name), model.blocks[1].get_parameter(name)
        assert (other.data_ptr() == parameter.data_ptr()) == (not parameter.requires_grad)
        assert third.data_ptr() != parameter.data_ptr()


def test_four_times_the_depth_takes_at_most_a_seventh_more_memory_beside_its_adapters():
    def size(n_layer, **changes):
        """Bytes of parameters as allocated, and of these the adapters'."""
        model = Progressive(ProgressiveConfig(n_layer=n_layer, n_embd=48, n_head=2, vocab_size=64, **changes))
        pieces = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
        return sum(pieces.values()), 4 * sum(p.numel() for n, p in model.named_parameters() if "lora" in n)

    before, none = size(3)
    after, adapters = size(12, lora={"rank": 6}, bases=[j // 4 for j in range(12)])
    assert none == 0 and adapters > 0
    assert after - adapters <= 1.15 * before


def test_a_shared_base_computes_as_copies_of_it_do(progressive, ids):
    shared = progressive(lora={"rank": 3}, bases=[0, 0, 1, 1])
    apart = progressive(lora={"rank": 3})
    apart.load_state_dict(shared.state_dict())
    assert shared(ids[:, :-1]).logits.equal(apart(ids[:, :-1]).logits)


# Accounts.


def test_frozen_training_costs_4_p_and_3_a_and_6_p_lora(progressive):
    model = progressive(uses=2, lora={"rank": 3})
    blocks, head, attention = 4 * 12 * 32**2, 61 * 32, 4 * 4 * 32 * 16
    adapters = 4 * 18 * 3 * 32
    assert model.flops_per_token(16) == 4 * blocks + 6 * head + 3 * attention + 6 * adapters


# Bad input.


@pytest.mark.parametrize(
    "values, lines",
    [
        ({"uses": 5}, ["model.uses = 5: does not divide model.n_layer = 12; take model.n_layer = 10 or 15"]),
        ({"uses": 24}, ["model.uses = 24: does not divide model.n_layer = 12; take model.n_layer = 24"]),
        ({"uses": [3, 4]}, ["model.uses = [3, 4]: adds up to 7, but model.n_layer = 12; make them agree"]),
        ({"uses": []}, ["model.uses = []: adds up to 0, but model.n_layer = 12; make them agree"]),
        ({"lora": {"rank": 193}}, ["model.lora.rank = 193: above the width of the narrowest block, 192; take 48"]),
        ({"lora": {"rank": 0}}, ["model.lora.rank = 0: input should be greater than 0"]),
        ({"lora": {"rnk": 1}}, ["model.lora.rnk: no such key; did you mean model.lora.rank?"]),
        (
            {"bases": [0]},
            ["model.bases = [0]: without model.lora nothing is frozen that could be shared; leave it out"],
        ),
        (
            {"uses": 4, "lora": {}, "bases": [0, 1]},
            ["model.bases = [0, 1]: 2 numbers for 3 distinct blocks; give one for each"],
        ),
        (
            {"uses": 4, "gate": {"blocks": [1, 3]}},
            ["model.gate.blocks = [1, 3]: the model has 3 distinct blocks; name some of 0 to 2"],
        ),
        (
            {"lora": {}, "mixture": {"templates": 2}},
            ["model.mixture = {'templates': 2}: cannot stand beside model.lora; merge that first"],
        ),
        ({"mixture": {"templates": 0}}, ["model.mixture.templates = 0: input should be greater than 0"]),
        (
            {"n_embd": 100, "uses": 5},
            [
                "model.n_embd = 100: not divisible by model.n_head = 6; take 96 or 108",
                "model.uses = 5: does not divide model.n_layer = 12; take model.n_layer = 10 or 15",
            ],
        ),
    ],
)
def test_an_impossible_section_is_named_with_a_cure(values, lines):
    config, problems = validate(ProgressiveConfig, values, "model")
    assert (config, problems) == (None, lines)
