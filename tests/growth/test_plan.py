"""The plan: data that can be written down, hashed, read back and checked against its checkpoint."""

from dataclasses import replace

import pytest
import torch

from dsllm.config import LoRAConfig, ModelConfig
from dsllm.errors import CheckpointError, ConfigError
from dsllm.growth.merge import detach_plan, merge_plan
from dsllm.growth.operators import dropin, interpose, lateral, mixture, untie, zero_init
from dsllm.growth.plan import GrowthPlan, as_growable, make_plan
from dsllm.models import build_model
from dsllm.models.gpt2 import GPT2, GPT2Config
from dsllm.models.lora import is_adapter
from dsllm.models.progressive import Progressive, ProgressiveConfig
from tests.growth.applying import SMALL, grown, logits, moved, section, small

LORA = LoRAConfig(rank=4)


@pytest.fixture
def plan() -> GrowthPlan:
    model = ProgressiveConfig(**{**SMALL, "n_layer": 12, "uses": 4})
    return make_plan(untie(model, 2), model, "checkpoint", "asymmetric", LORA)


def test_a_plan_reads_back_as_itself(plan):
    again = GrowthPlan.from_json(plan.to_json())
    assert again == plan
    assert again.hash() == plan.hash()
    assert list(again.tensors) == list(plan.tensors)


def test_the_hash_depends_on_all_that_a_plan_says(plan):
    other = dict(plan.tensors)
    other["wte.weight"] = replace(other["wte.weight"], transform="zero")
    changes = [{"source": "another"}, {"optimizer_state": "zero"}, {"tensors": other}, {"dead_at_start": ()}]
    assert len({plan.hash(), *(replace(plan, **change).hash() for change in changes)}) == 5


@pytest.mark.parametrize("damage", [lambda t: t.replace('"identity"', '"zero"', 1), lambda t: t[:-9], lambda t: "{}"])
def test_a_changed_or_damaged_plan_is_refused(plan, damage):
    with pytest.raises(CheckpointError, match="grow the checkpoint again"):
        GrowthPlan.from_json(damage(plan.to_json()))


def test_a_plan_for_another_checkpoint_is_refused(plan):
    plan.check_source("checkpoint")
    with pytest.raises(CheckpointError, match="does not match another"):
        plan.check_source("another")


def test_it_says_depth_and_blocks_before_and_after(plan):
    assert (plan.layers_before, plan.layers_after) == (12, 12)
    assert (plan.blocks_before, plan.blocks_after) == (3, 6)


@pytest.mark.parametrize(
    "structure, message",
    [
        ({"lora": {"rank": 4}}, "live adapters does not grow; merge it first"),
        ({"mixture": {"templates": 2}}, "mixed blocks does not grow; merge it first"),
        ({"gate": {"blocks": [1]}}, "gates does not grow; merge it first"),
        ({"lateral": {"n_embd": 8, "n_head": 1, "rank": 2}}, "second column does not grow"),
    ],
)
def test_what_is_not_settled_does_not_grow(structure, message):
    model = ProgressiveConfig(**{**SMALL, **structure})
    with pytest.raises(CheckpointError, match=message):
        make_plan(interpose(model, 2), model, "x")


def test_a_plain_gpt2_grows_as_the_same_function():
    model = moved(build_model(GPT2Config(**SMALL)))
    assert isinstance(model, GPT2)
    growable = as_growable(model.config)
    plan = make_plan(zero_init(growable, 2), growable, "x", lora=LORA)
    assert logits(grown(plan, model)).equal(logits(model))


class Parallel(GPT2):
    """A user's own."""


@pytest.mark.parametrize("section", [ModelConfig, GPT2Config])
def test_another_kind_of_model_does_not_grow(section):
    """One that computes otherwise with a GPT-2's section neither: its blocks are not what they look like."""
    name = f"{__name__}:Parallel"
    with pytest.raises(ConfigError, match=r":Parallel: not known block by block, as growing and export need it"):
        as_growable(section(name=name))


@pytest.mark.parametrize("freeze", ["matrices", "attention", "all"])
def test_merged_adapters_are_the_same_function_and_end_the_sharing(freeze):
    model = small()
    lora = LoRAConfig(rank=4, freeze=freeze)
    plan = make_plan(interpose(model.config, 2), model.config, "x", lora=lora)
    diverged = moved(grown(plan, model))
    merge = merge_plan(diverged.config, "y")
    merged = grown(merge, diverged)
    assert merged.config.lora is None and merged.config.bases is None
    assert (logits(merged) - logits(diverged)).abs().max() < 1e-5
    assert not logits(merged).equal(logits(model))
    blocks = [block.attention.qkv.weight for block in merged.blocks]
    assert all(not a.equal(b) for i, a in enumerate(blocks) for b in blocks[:i])
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_after_a_merge_only_what_trained_before_has_moments(plan):
    model = ProgressiveConfig(**plan.model_after)
    merge = merge_plan(model, "y")
    assert merge.moments_from("blocks.3.norm_1.weight") == "blocks.3.norm_1.weight"
    assert merge.moments_from("blocks.3.mlp.up.weight") is None
    assert merge.preserves_function and merge.operator == "merge"


def test_a_merged_mixture_is_the_same_function():
    model = small()
    growth = mixture(model.config, 2, coefficients="orthogonal")
    mixed = moved(grown(make_plan(growth, model.config, "x"), model))
    plain = grown(merge_plan(mixed.config, "y"), mixed)
    assert plain.config.mixture is None
    assert logits(plain).equal(logits(mixed))


def test_gates_are_dropped_when_they_are_open_and_not_before():
    model = small()
    gated = grown(make_plan(dropin(model.config, 2, steps=50), model.config, "x", step=100), model)
    with pytest.raises(CheckpointError, match="still opening at step 149; merge from step 150 on"):
        merge_plan(gated.config, "y", step=149)
    gated.set_step(150)
    assert logits(grown(merge_plan(gated.config, "y", step=150), gated)).equal(logits(gated))


@pytest.mark.parametrize("read_out", [None, [0]])
def test_coarse_levels_that_have_not_opened_yet_are_declared_and_none_once_they_have(read_out):
    torch.manual_seed(0)
    levels = {"strides": [2, 2, 2], "widths": [8, 8, 16, 16], "encoder": [1, 0, 1], "decoder": [0, 1, 0]}
    model = build_model(section("conv_attention", **levels, read_out=read_out))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(0, 61, (4, 17), generator=torch.Generator().manual_seed(2))
    silent = []
    for step in range(5):
        plan = make_plan(interpose(model.config, 2, levels=[0]), model.config, "x", step=step)
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).loss.backward()
        dead = [name for name in plan.tensors if name.startswith(("merges", "spreads", "reads"))]
        dead = [name for name in dead if not model.get_parameter(name).grad.any()]
        assert all(plan.is_dead_at_start(name) for name in dead)
        silent.append(len(dead))
        optimizer.step()
    assert silent[0] > silent[1] > 0 and silent[3:] == [0, 0] and not plan.dead_at_start


def test_detached_adapters_leave_the_function_that_they_were_put_on():
    model = small()
    growth = interpose(model.config, 2)
    adapted = moved_adapters(grown(make_plan(growth, model.config, "x", lora=LORA), model))
    bare = grown(detach_plan(adapted.config, "y"), adapted)
    assert bare.config.lora is None and not logits(adapted).equal(logits(bare))
    assert logits(bare).equal(logits(grown(make_plan(growth, model.config, "x"), model)))
    with pytest.raises(CheckpointError, match="nothing to detach"):
        detach_plan(bare.config, "z")


def moved_adapters(model: Progressive) -> Progressive:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.add_(0.1)
    return model


def test_a_model_of_plain_blocks_has_nothing_to_merge():
    model = ProgressiveConfig(**SMALL)
    for plain in (model, lateral(model, 2).model):
        with pytest.raises(CheckpointError, match="nothing to merge"):
            merge_plan(plain, "x")
