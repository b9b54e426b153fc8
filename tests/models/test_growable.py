"""What growing models of several levels share with those of one: adapters, bases and gates, each on its own blocks."""

from fnmatch import fnmatchcase

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsllm.models.conv_attention import ConvAttention
from dsllm.models.conv_attention_config import ConvAttentionConfig
from dsllm.section import validate
from tests.models.conftest import moved

SECTION = {
    "n_head": 2,
    "n_embd": 32,
    "context": 16,
    "vocab_size": 61,
    "strides": [2, 4],
    "widths": [8, 16, 24],
    "encoder": [1, 2],
    "middle": 2,
    "decoder": [0, 1],
}
WIDTHS = (8, 16, 16, 24, 24, 16)


def build(**changes: object) -> ConvAttention:
    torch.manual_seed(0)
    model = moved(ConvAttention(ConvAttentionConfig(**{**SECTION, **changes})))
    model.set_step(5)
    return model


def names(model: ConvAttention, *, trained: bool) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad == trained}


# Facts of the section.


def test_a_section_says_which_runs_are_blocks_and_where_each_block_stands():
    section = ConvAttentionConfig(**SECTION)
    assert section.executed == (0, None, 1, 2, None, 3, 4, None, 5, None)
    assert section.block_levels == (0, 1, 1, 2, 2, 1)
    assert section.block_widths == WIDTHS
    assert len(set(section.block_places)) == 4 and section.block_places[5] == "the decoder of level 1"


def test_blocks_are_counted_in_the_places_that_they_are_made_from():
    section = ConvAttentionConfig(**SECTION)
    assert section.remade(range(6)) == {"encoder": (1, 2), "middle": 2, "decoder": (0, 1), "n_layer": 10}
    grown = section.remade([0, 1, 2, 2, 2, 3, 4, 5, 5])
    assert grown == {"encoder": (1, 4), "middle": 2, "decoder": (0, 2), "n_layer": 13}
    assert ConvAttentionConfig(**{**SECTION, **grown}).block_levels == (0, 1, 1, 1, 1, 2, 2, 1, 1)


def test_without_strides_all_blocks_stand_in_the_middle():
    section = ConvAttentionConfig(n_head=2, strides=(), widths=(16,), encoder=(), middle=3, decoder=())
    assert section.executed == (0, 1, 2) and len(set(section.block_places)) == 1
    assert section.remade([0, 1, 1, 2]) == {"encoder": (), "middle": 4, "decoder": (), "n_layer": 4}


@pytest.mark.parametrize(
    "values, line",
    [
        ({"lora": {"rank": 9}}, "model.lora.rank = 9: above the width of the narrowest block, 8; take 2"),
        ({"gate": {"blocks": [6]}}, "model.gate.blocks = [6]: the model has 6 distinct blocks; name some of 0 to 5"),
        (
            {"lora": {"rank": 2}, "bases": [0, 0, 1, 2, 3, 4]},
            "model.bases = [0, 0, 1, 2, 3, 4]: blocks 8 and 16 wide share 0; give them different numbers",
        ),
        ({"bases": [0]}, "model.bases = [0]: without model.lora nothing is frozen that could be shared; leave it out"),
        (
            {"lora": {"rank": 2}, "encoder": [1]},
            "model.encoder = [1]: 1 given; with 2 strides 2 are needed, one for each level but the innermost",
        ),
    ],
)
def test_an_impossible_section_is_named_with_a_cure(values, line):
    assert validate(ConvAttentionConfig, {**SECTION, **values}, "model") == (None, [line])


# Adapters and bases.

FROZEN = {
    "matrices": ["blocks.*.attention.*.weight", "blocks.*.attention.*.bias", "blocks.*.mlp.*"],
    "attention": ["blocks.*.attention.*.weight", "blocks.*.attention.*.bias"],
    "all": ["*weight", "*bias"],
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_blocks_rest_under_adapters_and_the_way_between_levels_only_with_all(freeze, ids):
    model = build(lora={"rank": 3, "freeze": freeze}, bases=[0, 1, 1, 2, 2, 3])
    adapters = {name for name, _ in model.named_parameters() if "lora" in name}
    whole = {name for name, _ in model.named_parameters(remove_duplicate=False)} - adapters
    assert names(model, trained=False) == {n for n in whole if any(fnmatchcase(n, p) for p in FROZEN[freeze])}
    assert len(adapters) == 6 * 2 * (2 if freeze == "attention" else 4)
    model(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.any()) == parameter.requires_grad, name
    up = [block.mlp.up.weight for block in model.blocks]
    assert (up[1] is up[2], up[3] is up[4]) == (freeze != "attention",) * 2 and up[2] is not up[5]


@pytest.mark.parametrize("freeze", FROZEN)
def test_fresh_adapters_change_no_bit(freeze, ids):
    plain = build()
    torch.manual_seed(0)
    adapted = ConvAttention(ConvAttentionConfig(**SECTION, lora={"rank": 3, "freeze": freeze}))
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert missing and not unexpected and all("lora" in name for name in missing)
    assert adapted(ids[:, :-1]).logits.equal(plain(ids[:, :-1]).logits)


def test_adapters_have_groups_and_rates_of_their_own():
    model = build(lora={"rank": 3, "lr_scale_b": 16.0})
    groups = {group["name"]: group for group in model.parameter_groups(0.1)}
    assert list(groups) == ["decay", "no_decay", "lora_A", "lora_B"] and groups["lora_B"]["lr_scale"] == 16.0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in groups.values()) == len(trained)


# Gates.


@pytest.mark.parametrize("kind", ["scalar", "channel"])
def test_a_shut_gate_leaves_its_blocks_out_and_an_open_one_is_none(kind, ids):
    gated = build(gate={"blocks": [2, 4, 5], "start": 10, "steps": 10, "kind": kind})
    for sources, depths, step in (
        ([0, 1, 3], {"encoder": [1, 1], "middle": 1, "decoder": [0, 0]}, 10),
        (range(6), {}, 20),
    ):
        same = build(**depths)
        state = {name: tensor for name, tensor in gated.state_dict().items() if not name.startswith("blocks.")}
        for block, source in enumerate(sources):
            own = gated.blocks[source].state_dict()
            state |= {f"blocks.{block}.{name}": tensor for name, tensor in own.items()}
        same.load_state_dict(state)
        gated.set_step(step)
        assert gated(ids[:, :-1]).logits.equal(same(ids[:, :-1]).logits)


def test_a_gates_channels_are_those_of_its_blocks_level(ids):
    gated = build(gate={"blocks": [0, 3], "steps": 10, "kind": "channel"})
    assert {block: len(mask) for block, mask in gated.gates.masks.items()} == {0: 8, 3: 24}
    assert gated.train()(ids[:, :-1]).logits.isfinite().all()


def test_with_a_half_open_gate_a_cache_gives_what_a_whole_pass_gives(ids):
    gated = build(gate={"blocks": [0, 3, 5], "steps": 10}).eval()
    cache, row = gated.new_cache(), ids[:, :-1]
    with torch.no_grad():
        steps = torch.cat([gated.hidden(row[:, t : t + 1], cache=cache) for t in range(row.shape[1])], dim=1)
        torch.testing.assert_close(steps, gated.hidden(row), rtol=1e-4, atol=1e-5)


# Accounts.


@pytest.mark.parametrize("context", [1, 7, 16])
@pytest.mark.parametrize("freeze", FROZEN)
def test_the_flops_of_adapters_are_what_a_forward_pass_counts(freeze, context):
    model = build(lora={"rank": 3, "freeze": freeze})
    tokens = torch.zeros(1, context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(tokens)
    assert model.forward_flops_per_token(context) == pytest.approx(counter.get_total_flops() / context, abs=2)


@pytest.mark.parametrize("freeze", FROZEN)
def test_what_rests_has_no_weight_gradient_to_pay_for(freeze):
    model, plain = build(lora={"rank": 3, "freeze": freeze}), build()
    counts = [16 // model.spans[level] for level in model.config.block_levels]
    matrices = {"matrices": 12, "attention": 4, "all": 12}[freeze]
    resting = 2 * sum(n * matrices * width**2 for n, width in zip(counts, WIDTHS, strict=True)) // 16
    resting += model.outside_flops_per_token(16) if freeze == "all" else 0
    assert model.flops_per_token(16) == 3 * model.forward_flops_per_token(16) - resting
    assert 0 < model.flops_per_token(16) - 3 * model.adapter_flops_per_token(16) < plain.flops_per_token(16)
