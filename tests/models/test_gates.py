"""Gates: shut at the start, open at the end, and the same channels for all who ask."""

import pytest
import torch

from dsllm.models.gates import GateConfig, Gates
from dsllm.section import validate


def test_a_gate_opens_evenly_from_its_start():
    gate = GateConfig(blocks=[1], start=100, steps=50)
    assert [gate.opening(step) for step in (0, 100, 101, 125, 150, 10_000)] == [0, 0, 0.02, 0.5, 1, 1]


@pytest.mark.parametrize("kind", ["scalar", "channel"])
@pytest.mark.parametrize("training", [True, False])
def test_a_shut_gate_gives_the_stream_before_and_an_open_one_the_stream_behind(kind, training):
    gates = Gates(GateConfig(blocks=[1], start=10, steps=7, kind=kind), (0, 0, 1), (8, 8))
    before, after = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    assert gates.mix(2, before, after, training).equal(before)
    gates.set_step(17)
    assert gates.mix(2, before, after, training).equal(after)
    gates.set_step(13)
    half = gates.mix(2, before, after, training)
    assert not half.equal(before) and not half.equal(after)


def test_blocks_without_a_gate_are_left_alone():
    gates = Gates(GateConfig(blocks=[1]), (0, 0, 1, 2), (8, 8, 8))
    before, after = torch.zeros(1, 1, 8), torch.ones(1, 1, 8)
    assert [gates.mix(index, before, after, True).mean().item() for index in range(4)] == [1, 1, 0, 1]


def test_runs_that_are_no_blocks_are_left_alone_and_every_gate_has_its_blocks_own_channels():
    gates = Gates(GateConfig(blocks=[0, 1], start=9, kind="channel"), (None, 0, None, 1), (8, 4))
    streams = {index: (torch.zeros(1, 1, width), torch.ones(1, 1, width)) for index, width in ((0, 6), (1, 8), (3, 4))}
    assert [gates.mix(index, *pair, True).mean().item() for index, pair in streams.items()] == [1, 0, 0]


def test_a_half_open_gate_mixes_by_its_opening():
    gates = Gates(GateConfig(blocks=[0], steps=4), (0,), (2,))
    gates.set_step(1)
    out = gates.mix(0, torch.tensor([4.0, 8.0]), torch.tensor([8.0, 0.0]), True)
    assert out.tolist() == [5.0, 6.0]


def test_channels_are_each_open_or_shut_in_training_and_half_open_in_evaluation():
    gates = Gates(GateConfig(blocks=[0], steps=4, kind="channel"), (0,), (4000,))
    gates.set_step(1)
    before, after = torch.zeros(2, 4000), torch.ones(2, 4000)
    drawn = gates.mix(0, before, after, True)
    assert drawn[0].equal(drawn[1]) and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.25, abs=0.03)
    assert gates.mix(0, before, after, False).eq(0.25).all()


def test_the_channels_follow_from_seed_step_and_block_alone():
    def mask(seed=3, step=100, block=1):
        return GateConfig(blocks=[0, 1], steps=200, kind="channel", seed=seed).mask(step, block, 64)

    first = mask()
    torch.manual_seed(99)
    assert mask().equal(first)
    assert not any(other.equal(first) for other in (mask(seed=4), mask(step=101), mask(block=0)))


def test_the_channels_are_the_same_on_any_machine():
    mask = GateConfig(blocks=[0], steps=2).mask(1, 0, 16)
    assert mask.int().tolist() == [1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1]


def test_drawing_channels_leaves_torchs_random_state_alone():
    before = torch.get_rng_state()
    GateConfig(blocks=[0], steps=2, kind="channel").mask(1, 0, 16)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("blocks", [[], [1, 1]])
def test_gated_blocks_are_named_once(blocks):
    _, problems = validate(GateConfig, {"blocks": blocks}, "model.gate")
    assert problems == [f"model.gate.blocks = {blocks}: name each gated block once, at least one"]
