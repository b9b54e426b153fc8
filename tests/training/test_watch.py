"""Figures of layers are those computed by hand, whatever ZeRO stage keeps the tensors in pieces."""

import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsllm.config import MonitorConfig
from dsllm.growth.plan import section_of
from dsllm.models import build_model
from dsllm.training.backend import import_deepspeed
from dsllm.training.monitor import Monitor, read_metrics
from dsllm.training.progress import Progress
from dsllm.training.tensors import EngineTensors
from dsllm.training.watch import (
    MOST_ENTRIES,
    Divergence,
    Gradients,
    Layers,
    Watch,
    evenly_spaced,
    neighbouring_copies,
)
from tests.forked import forked_ranks

SIZE = {"n_layer": 4, "n_head": 2, "n_embd": 16, "context": 16, "vocab_size": 61}
MATRICES = ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]
LINEAGE = (0, 0, 1, 1)
VARIANTS = {
    "plain": {},
    "adapters on shared bases": {"lora": {"rank": 3}, "bases": [0, 0, 1, 1]},
    "mixture": {"mixture": {"templates": 2}},
    "two levels": {
        "name": "conv_attention",
        "n_layer": 6,
        "strides": (2,),
        "widths": (8, 16),
        "encoder": (2,),
        "middle": 2,
        "decoder": (0,),
    },
}
RANKS = 2


def build(**changes):
    torch.manual_seed(0)
    model = build_model(section_of({"name": "progressive", **SIZE, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def equal_copies():
    """Blocks 0 and 1, and 2 and 3, are equal and hand the stream on untouched: so their gradients are equal too."""
    model = build()
    for first, second in ((0, 1), (2, 3)):
        for name in ("attention.out", "mlp.down"):
            for parameter in model.blocks[first].get_submodule(name).parameters():
                parameter.data.zero_()
        model.blocks[second].load_state_dict(model.blocks[first].state_dict())
    return model


def large():
    """Two copies of which one matrix differs, as an adapter makes it, the only one that is read whole."""
    model = build(n_layer=2, n_embd=320)
    model.blocks[1].load_state_dict(model.blocks[0].state_dict())
    with torch.no_grad():
        model.blocks[1].attention.out.weight += 0.1 * torch.randn(320, 1) * torch.randn(1, 320)
    return model


def models():
    return {**{name: build(**changes) for name, changes in VARIANTS.items()}, "equal copies": equal_copies()}


def batch():
    return torch.randint(0, 61, (4, 17), generator=torch.Generator().manual_seed(1))


def watch_in_engines(rank: int, folder: Path):
    """Every model at every ZeRO stage, on two ranks; what each rank has seen goes into a file."""
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed wants to hear it from a launcher
    deepspeed = import_deepspeed()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    seen = {}
    for stage in range(4):
        config = {
            "train_batch_size": 4,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "steps_per_print": 1000,
        }
        for name, model in models().items():
            optimizer = torch.optim.AdamW(model.parameter_groups(0.1), lr=1e-3)
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
            watch = Watch(model, EngineTensors(engine, model), LINEAGE)
            mine = batch().chunk(RANKS)[rank]
            with watch.residuals() as ratios:
                loss = engine(mine[:, :-1], targets=mine[:, 1:]).loss
            engine.backward(loss)
            layers = watch.look(ratios)
            divergence = {"together": layers.divergence.together, **layers.divergence.by_matrix}
            seen[name, stage] = (divergence, layers.gradients.norms, layers.gradients.cosines, ratios)
            engine.step()
    model = large()
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    watch = Watch(model, EngineTensors(engine, model), (0, 0))
    mine = batch().chunk(RANKS)[rank]
    engine.backward(engine(mine[:, :-1], targets=mine[:, 1:]).loss)
    seen["large"] = watch.look()
    torch.save(seen, Path(folder, f"seen_{rank}"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    forked_ranks(watch_in_engines, RANKS, folder)
    return [torch.load(folder / f"seen_{rank}", weights_only=False) for rank in range(RANKS)]


def matrix(linear, variant):
    """The matrix by which a linear map acts: what it makes of the unit vectors, its bias taken off."""
    units = torch.eye(linear.template(0).shape[1] if variant == "mixture" else linear.in_features)
    return (linear(units) - linear.bias).T


@torch.no_grad()
def distances_by_hand(model, variant):
    by_matrix = {name: [matrix(block.get_submodule(name), variant) for block in model.blocks] for name in MATRICES}
    by_matrix["together"] = [torch.cat([m.flatten() for m in row]) for row in zip(*by_matrix.values(), strict=True)]

    def distance(a, b):
        return float((a - b).norm() / a.norm()) if a.shape == b.shape else math.nan

    return {
        name: np.array([[distance(a, b) for b in matrices] for a in matrices]) for name, matrices in by_matrix.items()
    }


def gradients_by_hand(model, pairs=((0, 1), (2, 3))):
    """Norms and cosines of each block's own trainable parameters, from one plain backward pass."""
    tokens = batch()
    model(tokens[:, :-1], targets=tokens[:, 1:]).loss.backward()
    flat = []
    for block in model.blocks:
        own = [p.grad.flatten() for n, p in block.named_parameters() if p.requires_grad and "template" not in n]
        flat.append(torch.cat(own).double())
    cosines = {(i, j): float(torch.cosine_similarity(flat[i], flat[j], dim=0)) for i, j in pairs}
    return [float(g.norm()) for g in flat], cosines


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("variant", VARIANTS)
def test_divergence_is_that_of_the_matrices_as_they_act_at_every_zero_stage(seen, variant, stage):
    expected = distances_by_hand(build(**VARIANTS[variant]), variant)
    for rank in range(RANKS):
        divergence = seen[rank][variant, stage][0]
        assert divergence.keys() == expected.keys()
        for name, distances in expected.items():
            np.testing.assert_allclose(divergence[name], distances, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_whole_batch_at_every_zero_stage(seen, variant, stage):
    norms, cosines = gradients_by_hand(build(**VARIANTS[variant]))
    for rank in range(RANKS):
        assert seen[rank][variant, stage][1] == pytest.approx(norms, rel=1e-4)
        assert seen[rank][variant, stage][2] == pytest.approx(cosines, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_equal_copies_have_divergence_0_and_cosine_1(seen, stage):
    divergence, _, cosines, _ = seen[0]["equal copies", stage]
    for distances in divergence.values():
        assert distances[0, 1] == distances[1, 0] == distances[2, 3] == 0
    assert divergence["together"][0, 2] > 0.1
    assert cosines == {(0, 1): pytest.approx(1, abs=1e-12), (2, 3): pytest.approx(1, abs=1e-12)}


@pytest.mark.slow
def test_residual_ratios_are_seen_in_the_engine_at_every_zero_stage(seen):
    for variant, changes in VARIANTS.items():
        if variant == "two levels":  # an encoder, a middle and a decoder: four blocks, and the attention between levels
            assert [len(seen[0][variant, stage][3]) for stage in range(4)] == [6] * 4
            continue
        for rank in range(RANKS):
            expected = ratios_by_hand(build(**changes), batch().chunk(RANKS)[rank][:, :-1])
            for stage in range(4):
                assert seen[rank][variant, stage][3] == pytest.approx(expected, rel=1e-4)
    assert seen[0]["equal copies", 3][3] == [0, 0, 0, 0]


@pytest.mark.slow
def test_large_matrices_of_which_a_part_is_read_count_as_whole_ones(seen):
    model, layers = large(), seen[0]["large"]
    assert model.blocks[0].mlp.up.weight.numel() > MOST_ENTRIES > model.blocks[0].attention.out.weight.numel()
    distances = distances_by_hand(model, "plain")
    np.testing.assert_allclose(layers.divergence.together, distances["together"], rtol=0.02)
    norms, cosines = gradients_by_hand(model, pairs=[(0, 1)])
    assert layers.gradients.norms == pytest.approx(norms, rel=1e-4)
    assert layers.gradients.cosines == pytest.approx(cosines, abs=0.02)


# Residuals alone need no engine.


def ratios_by_hand(model, ids):
    """From the model's own parts: the stream before and behind each executed block, gates included."""
    states = []
    with torch.no_grad():
        h = model.wte(ids)
        states.append(h)
        rotation = model.rotation(torch.arange(ids.shape[1]), SIZE["n_embd"] // SIZE["n_head"], h.dtype)
        for index, block in enumerate(model.executed_blocks()):
            out = block(h, rotation)
            h = out if model.gates is None else model.gates.mix(index, h, out, model.training)
            states.append(h)
    return [float(((b - a).norm(dim=-1) / a.norm(dim=-1)).mean()) for a, b in pairwise(states)]


def residuals_of(model):
    return Watch(model, tensors=None, lineage=range(len(model.blocks))).residuals()


@pytest.mark.parametrize("recompute", ["none", "all", [1, 2]])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"uses": 2},
        {"uses": [1, 3], "lora": {"rank": 3}},
        {"gate": {"blocks": [1, 2], "steps": 10}},
        {"gate": {"blocks": [1, 2], "steps": 10, "kind": "channel"}},
    ],
    ids=["plain", "repeated", "adapters", "scalar gate", "channel gate"],
)
def test_residual_ratios_are_those_by_hand_also_when_activations_are_recomputed(changes, recompute):
    model, tokens = build(**changes), batch()
    model.set_step(4)
    model.checkpoint_activations(recompute)
    with residuals_of(model) as ratios:
        model(tokens[:, :-1], targets=tokens[:, 1:]).loss.backward()
    assert ratios == pytest.approx(ratios_by_hand(model, tokens[:, :-1]), rel=1e-5)


def test_a_shut_gate_shows_as_a_layer_that_adds_nothing():
    model = build(gate={"blocks": [1], "steps": 10, "start": 5})
    with residuals_of(model) as ratios:
        model(batch()[:, :-1])
    assert ratios[1] == 0 and min(ratios[0], *ratios[2:]) > 0.1


def test_residual_ratios_are_the_mean_over_the_passes_watched():
    model = build()
    halves = batch()[:, :-1].chunk(2)
    with residuals_of(model) as ratios:
        for half in halves:
            model(half)
    assert ratios == pytest.approx(np.mean([ratios_by_hand(model, half) for half in halves], axis=0), rel=1e-5)


def test_a_second_columns_layers_follow_the_firsts():
    model = build(lateral={"n_embd": 12, "n_head": 2, "rank": 3})
    with residuals_of(model) as ratios:
        model(batch()[:, :-1])
    assert len(ratios) == 8 and ratios[:4] == pytest.approx(ratios_by_hand(model, batch()[:, :-1]), rel=1e-5)


def test_watching_leaves_loss_gradients_and_the_model_as_they_were():
    tokens = batch()
    gradients = []
    for watched in (False, True):
        model = build(uses=2)
        before = set(vars(model))
        with residuals_of(model) if watched else torch.enable_grad() as ratios:
            loss = model(tokens[:, :-1], targets=tokens[:, 1:]).loss
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        assert set(vars(model)) == before
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(isinstance(ratio, float) for ratio in ratios)


def test_a_pass_that_fails_leaves_the_model_as_it_was():
    model = build()
    before = set(vars(model))
    with pytest.raises(IndexError), residuals_of(model):
        model(torch.full((1, 4), 1000))
    assert set(vars(model)) == before


# The parts.


@pytest.mark.parametrize(
    "lineage, pairs",
    [
        ((0, 1, 2), ()),
        ((0, 0, 1, 1), ((0, 1), (2, 3))),
        ((0, 0, 0, 0), ((0, 1), (1, 2), (2, 3))),
        ((0, 1, 0, 1, 0), ((0, 2), (1, 3), (2, 4))),
    ],
)
def test_only_neighbouring_copies_are_paired_so_that_pairs_stay_fewer_than_blocks(lineage, pairs):
    assert neighbouring_copies(lineage) == pairs


def test_a_lineage_of_another_model_is_refused():
    with pytest.raises(ValueError, match="a lineage of 3 blocks for a model of 4"):
        Watch(build(), tensors=None, lineage=[0, 0, 1])


def test_small_tensors_are_read_whole():
    tensor = torch.randn(8, 32)
    assert torch.equal(evenly_spaced(tensor, most=256), tensor.flatten().double())
    assert evenly_spaced(torch.zeros(())).shape == (1,)


@pytest.mark.parametrize("shape", [(96, 64), (100, 72), (6400,)])
def test_of_a_large_tensor_entries_of_every_row_and_column_are_read(shape):
    places = torch.arange(math.prod(shape)).view(shape)
    chosen = evenly_spaced(places, most=math.prod(shape) // 8).long()
    assert math.prod(shape) // 16 < len(chosen) <= math.prod(shape) // 8
    assert len(set((chosen % shape[-1]).tolist())) == min(shape[-1], len(chosen))
    assert len(set((chosen // shape[-1]).tolist())) == math.prod(shape[:-1])


def test_a_distance_from_evenly_spaced_entries_is_close_to_the_exact_one():
    a = torch.randn(512, 1024)
    b = a + 0.05 * torch.randn(512, 1) * torch.randn(1, 1024)  # as an adapter changes it
    few_a, few_b = evenly_spaced(a, 2**14), evenly_spaced(b, 2**14)
    assert float((few_a - few_b).norm() / few_a.norm()) == pytest.approx(float((a - b).norm() / a.norm()), rel=0.05)


# What is written.


def layers():
    distances = np.array([[0, 0.1, 1.2], [0.1, 0, 1.3], [1.2, 1.3, 0]])
    return Layers(
        copies=((0, 1),),
        divergence=Divergence(distances, {"mlp.up": 2 * distances}),
        gradients=Gradients([1.0, 2.0, math.inf], {(0, 1): 0.123456789}),
        residual_ratios=[0.5, 0.25, 0.125],
    )


def test_curves_are_those_of_copies_and_of_layers_and_finite():
    assert layers().scalars() == {
        "divergence/0-1": 0.1,
        "gradient_cosine/0-1": 0.123457,
        "gradient_norm/0": 1.0,
        "gradient_norm/1": 2.0,
        "residual_ratio/0": 0.5,
        "residual_ratio/1": 0.25,
        "residual_ratio/2": 0.125,
    }


def test_figures_stand_in_the_metrics_and_with_the_heat_map_in_tensorboard(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(), Progress(), steps=10)
    layers().write(monitor, Progress(step=3, tokens=300))
    monitor.close()
    assert read_metrics(tmp_path) == [
        {
            "kind": "layers",
            "step": 3,
            "tokens": 300,
            "divergence": {"0-1": 0.1},
            "divergence_by_matrix": {"mlp.up": {"0-1": 0.2}},
            "gradient_cosine": {"0-1": 0.123457},
            "gradient_norm": [1.0, 2.0, None],
            "residual_ratio": [0.5, 0.25, 0.125],
        }
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard" / "by_step"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {f"layers/{name}" for name in layers().scalars()}
    (point,) = board.Scalars("layers/divergence/0-1")
    assert (point.step, point.value) == (3, pytest.approx(0.1))
    (image,) = board.Images("layers/divergence_log_0.001_to_1.41")
    assert (image.step, image.width, image.height) == (3, 384 + 48, 384)
