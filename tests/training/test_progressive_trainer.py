"""Training that grows the model, on two ranks, at every ZeRO stage."""

import json
import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsllm.errors import CheckpointError
from dsllm.models.adapters import load_adapters, save_adapters
from dsllm.models.lora import LoRALinear, is_adapter, merged
from dsllm.training.checkpoints import complete_checkpoints
from dsllm.training.loading import base_hash, load_model
from dsllm.training.monitor import read_metrics
from tests.forked import forked
from tests.launching import needs_fp16, train

HERE = Path(__file__).parent
STAGES = [0, 1, 2, 3]
GROWN_AT, STEPS = 4, 16

OPERATORS = {
    "untie": ["model.uses=2", "model.n_layer=4"],
    "interpose": [],
    "stack": [],
    "middle": [],
    "zero_init": [],
    "random": ["growth.preset=no_diverge"],
    "dropin": ["growth.operator={name: dropin, steps: 4}"],
    "dropin_channel": ["growth.operator={name: dropin, steps: 4, kind: channel}"],
    "mixture": ["growth.preset=no_diverge"],
    "lateral": ["growth.preset=no_diverge", "growth.operator={name: lateral, freeze: false}"],
}
EXACT = {"untie", "zero_init", "dropin", "dropin_channel", "lateral"}


@pytest.fixture(scope="module")
def growing_recipe(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that grows once: 4 steps, an event, 12 steps, in fp32."""
    path = tmp_path_factory.mktemp("recipe") / "growing.yaml"
    path.write_text(
        f"""
run_dir: unnamed
model: {{name: progressive, n_layer: 2, n_head: 2, n_embd: 32, context: 32}}
data: {{path: {data_folder}}}
train: {{steps: {STEPS}, micro_batch_size: 4, global_batch_size: 16, lr: 5.0e-3, schedule: wsd, warmup_tokens: 0,
        precision: fp32, eval_every: 0, test_samples: 0, checkpoint_every: 0, keep_checkpoints: 9}}
growth: {{lora: {{rank: 8, lr_scale_b: 4}}, policy: {{name: schedule, at: [0.25]}}, probe_samples: 4, watch_every: 0}}
monitor: {{log_every: 1, tensorboard: false}}
"""
    )
    return path


def launch(recipe: Path, folder: Path, runs: dict[str, list[str]], ranks: int = 2) -> str:
    script = [HERE / "growing_runs.py", recipe, folder, json.dumps(runs)]
    return forked(script, ranks)


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run_dir) if record["kind"] == kind]


@pytest.fixture(scope="module", params=STAGES, ids="zero{}".format)
def grown(request: pytest.FixtureRequest, growing_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with each operator at one ZeRO stage, each in a folder of the operator's name."""
    folder = tmp_path_factory.mktemp(f"zero{request.param}")
    chosen = [f"train.ds_config=ds_configs/zero{request.param}.json"]
    chosen += [] if request.param == 2 else ["train.micro_batch_size=8"]  # at one stage steps accumulate
    runs = {name: [f"growth.operator={name}", *chosen, *overrides] for name, overrides in OPERATORS.items()}
    launch(growing_recipe, folder, runs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_trains_on_after_growth_with_finite_falling_loss(operator: str, grown: Path) -> None:
    losses = [record["loss"] for record in records(grown / operator, "train")]
    after = losses[GROWN_AT:]
    assert len(after) == STEPS - GROWN_AT >= 10 and all(math.isfinite(loss) for loss in losses)
    assert sum(after[-3:]) / 3 < sum(after[:3]) / 3 - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_receipt_finds_what_was_promised(operator: str, grown: Path) -> None:
    (receipt,) = records(grown / operator, "growth")
    assert receipt["step"] == GROWN_AT and receipt["problems"] == [] and receipt["gradients_checked"]
    assert receipt["copied"] > 20
    if operator in EXACT:
        assert (receipt["delta_loss"], receipt["delta_logit"], receipt["delta_kl"]) == (0, 0, 0)
    else:
        assert receipt["delta_loss"] != 0
    written = grown / operator / "growth" / receipt["checkpoint"] / "receipt.json"
    assert json.loads(written.read_text())["plan"] == receipt["plan"]


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["untie", "interpose", "stack", "middle", "dropin"])
def test_a_frozen_base_stays_bit_identical_and_every_adapter_moves(operator: str, grown: Path) -> None:
    begun, ended = (load_model(path).state_dict() for path in complete_checkpoints(grown / operator)[-2:])
    frozen = [name for name in ended if f"{name.rpartition('.')[0]}.lora_A" in ended and "lora" not in name]
    adapters = [name for name in ended if name.endswith("lora_B")]
    assert frozen and len(adapters) == 4 * 4
    assert all(ended[name].equal(begun[name]) for name in frozen)
    assert all(begun[name].count_nonzero() == 0 and ended[name].count_nonzero() > 0 for name in adapters)


@pytest.mark.slow
@needs_fp16
@pytest.mark.parametrize("stage", [2, 3])
def test_half_weights_grow_from_their_fp32_masters(stage: int, growing_recipe: Path, tmp_path: Path) -> None:
    half = ["train.precision=fp16", f"train.ds_config=ds_configs/zero{stage}.json", "train.lr=1e-3"]
    consolidate = ["growth.preset=diverge_consolidate", "growth.operator=untie", "model.uses=2"]
    launch(growing_recipe, tmp_path, {"half": half + consolidate})
    grown, merged = records(tmp_path / "half", "growth")
    assert (grown["operator"], grown["delta_loss"]) == ("untie", 0)
    assert merged["operator"] == "merge" and abs(merged["delta_loss"]) < 1e-3
    losses = [record["loss"] for record in records(tmp_path / "half", "train")]
    assert losses[-1] < losses[GROWN_AT] - 0.05


@pytest.fixture(scope="module")
def origins(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The origin's recipe, 3 blocks × 4 uses → 6 × 2 → 12 × 1 at its own sizes, in few steps of few tokens."""
    run_dir = tmp_path_factory.mktemp("origins") / "run"
    short = {"steps": 24, "micro_batch_size": 4, "global_batch_size": 4, "eval_every": 24, "eval_samples": 8}
    options = {"precision": "fp32", "test_samples": 0, **short}
    train(
        Path("launch/recipes/origin_progressive.yaml"),
        run_dir,
        **{f"train.{key}": value for key, value in options.items()},
        data__path=data_folder,
        growth__watch_every=4,
        monitor__log_every=1,
    )
    return run_dir


@pytest.mark.slow
def test_the_origins_switches_change_nothing_at_all_and_its_merge_next_to_nothing(origins: Path) -> None:
    receipts = records(origins, "growth")
    assert [receipt["operator"] for receipt in receipts] == ["untie", "merge", "untie"]
    assert [(r["blocks_before"], r["blocks_after"]) for r in receipts] == [(3, 6), (6, 6), (6, 12)]
    for receipt in receipts:
        assert receipt["problems"] == [] and (receipt["layers_before"], receipt["layers_after"]) == (12, 12)
        if receipt["operator"] == "untie":
            assert receipt["loss_after"] - receipt["loss_before"] == 0
            assert (receipt["delta_kl"], receipt["delta_logit"]) == (0, 0)
        else:
            assert abs(receipt["delta_loss"]) < 1e-6


@pytest.mark.slow
def test_the_origins_model_goes_on_learning_after_its_last_switch_and_all_blocks_part(origins: Path) -> None:
    final = [record for record in records(origins, "eval") if record["split"] == "val"][-1]
    assert final["loss"] < records(origins, "growth")[-1]["loss_before"]
    model = load_model(origins)
    blocks = [
        [merged(m.weight, m.lora_A, m.lora_B, m.scale, m.parts) for m in block.modules() if isinstance(m, LoRALinear)]
        for block in model.blocks
    ]
    assert len(blocks) == 12 and all(len(matrices) == 4 for matrices in blocks)
    assert all(not a.equal(b) for one, other in combinations(blocks, 2) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_the_adapters_of_a_run_can_be_saved_alone_and_know_their_base(origins: Path, tmp_path: Path) -> None:
    trained, ids = load_model(origins), torch.arange(64)[None]
    save_adapters(trained, tmp_path / "adapters.safetensors", base_hash(origins))
    begun = complete_checkpoints(origins)[-2]  # the last switch: other adapters, on what has not trained yet
    with pytest.raises(CheckpointError, match="belong to the base"):
        load_adapters(load_model(begun), tmp_path / "adapters.safetensors", base_hash(begun))
    bare = load_model(origins)
    for name, parameter in bare.named_parameters():
        if is_adapter(name):
            torch.nn.init.zeros_(parameter)
    assert not bare(ids).logits.equal(trained(ids).logits)
    load_adapters(bare, tmp_path / "adapters.safetensors", base_hash(origins))
    assert bare(ids).logits.equal(trained(ids).logits)


@pytest.mark.slow
def test_a_run_keeps_its_books_and_shows_its_layers(origins: Path) -> None:
    (ledger,) = records(origins, "ledger")
    phases = [(spent["stage"], spent["phase"], spent["steps"]) for spent in ledger["phases"]]
    assert phases == [(0, "full", 8), (1, "diverge", 8), (1, "consolidate", 0), (2, "diverge", 8)]
    trained = sum(spent["flops"] for spent in ledger["phases"])
    assert trained == pytest.approx(records(origins, "train")[-1]["flops"]) and ledger["flops"] > trained
    assert all(spent["growth_seconds"] > 0 for spent in ledger["phases"][1:])
    full, diverging = ledger["phases"][0], ledger["phases"][1]
    assert diverging["flops"] < full["flops"] and diverging["optimizer_bytes"] < full["optimizer_bytes"]
    layers = {record["step"]: record for record in records(origins, "layers")}
    assert len(layers) == 6
    last = layers[max(layers)]
    assert len(last["gradient_norm"]) == len(last["residual_ratio"]) == 12 and len(last["divergence"]) == 9
    assert all(distance > 0 for distance in last["divergence"].values())
    board = EventAccumulator(str(origins / "tensorboard" / "by_step"), size_guidance={"images": 0, "tensors": 0})
    board.Reload()
    assert any("divergence" in tag for tag in board.Tags()["images"])
    assert [event.step for event in board.Scalars("growth/blocks_after")] == [8, 16, 16]
    receipt = board.Tensors("growth/receipt/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "the function is preserved" in receipt


def test_a_race_keeps_the_operator_that_does_best_and_charges_the_others(growing_recipe: Path, tmp_path: Path) -> None:
    policy = "{name: race, candidates: [interpose, stack], at: [0.25], steps: 3}"
    options = [f"growth.policy={policy}", "growth.preset=no_diverge", "train.eval_every=4", "train.eval_samples=8"]
    output = launch(growing_recipe, tmp_path, {"race": options}, ranks=1)
    losses = dict(re.findall(r"race: (\w+) has a loss of ([\d.]+) at step 7", output))
    assert list(losses) == ["interpose", "stack"]
    receipts = records(tmp_path / "race", "growth")
    assert [receipt["operator"] for receipt in receipts] == ["interpose", "stack", min(losses, key=losses.__getitem__)]
    steps = [record["step"] for record in records(tmp_path / "race", "train")]
    assert steps == list(range(1, STEPS + 1))
    (ledger,) = records(tmp_path / "race", "ledger")
    before, after = ledger["phases"]
    assert (before["steps"], after["steps"]) == (4, 12)
    branch = 2 * 3 * after["flops"] / after["steps"]
    assert branch < before["lost_flops"] < 3 * branch  # with the branches' own probes
    trained = before["flops"] + after["flops"] + before["lost_flops"]
    assert records(tmp_path / "race", "train")[-1]["flops"] == pytest.approx(trained)


TWICE = {
    "mixture": ["growth.operator=mixture", "growth.preset=no_diverge"],
    "dropin": ["growth.operator={name: dropin, steps: 2}", "growth.preset=no_diverge"],
    "waiting": ["growth.operator={name: dropin, steps: 3}", "growth.preset=diverge_consolidate"],
    "asymmetric": ["growth.optimizer_state=asymmetric", "growth.operator=stack", "growth.preset=no_diverge"],
    "zero": [
        "growth.optimizer_state=zero",
        "growth.operator=stack",
        "growth.rewarm_tokens=1024",
        "growth.lr_scale=0.5",
    ],
    "gpt2": ["model.name=gpt2", "growth.operator=stack"],
}


def test_a_run_grows_again_after_each_kind_of_event(growing_recipe: Path, tmp_path: Path) -> None:
    policy = "growth.policy={name: schedule, at: [0.25, 0.6]}"
    launch(growing_recipe, tmp_path, {name: [policy, *overrides] for name, overrides in TWICE.items()}, ranks=1)
    events = {name: [(r["operator"], r["step"]) for r in records(tmp_path / name, "growth")] for name in TWICE}
    assert events == {
        "mixture": [("mixture", 4), ("merge", 10), ("mixture", 10)],
        "dropin": [("dropin", 4), ("merge", 10), ("dropin", 10)],
        "waiting": [("dropin", 4), ("merge", 7), ("dropin", 10), ("merge", 13)],
        "asymmetric": [("stack", 4), ("stack", 10)],
        "zero": [("stack", 4), ("merge", 10), ("stack", 10)],
        "gpt2": [("stack", 4), ("merge", 10), ("stack", 10)],
    }
    for name in TWICE:
        assert all(receipt["problems"] == [] for receipt in records(tmp_path / name, "growth"))
        losses = [record["loss"] for record in records(tmp_path / name, "train")]
        assert len(losses) == STEPS and losses[-1] < losses[GROWN_AT]
    rates = {record["step"]: record["lr"] for record in records(tmp_path / "zero", "train")}
    assert (rates[4], rates[5], rates[6]) == pytest.approx((5e-3, 5e-3 / 4, 5e-3 / 2))


def test_a_grown_run_is_not_resumed_without_its_growth_section_and_goes_back_behind_a_damaged_file(
    growing_recipe: Path, tmp_path: Path
) -> None:
    launch(growing_recipe, tmp_path, {"run": []}, ranks=1)
    run_dir = tmp_path / "run"
    output = train(growing_recipe, run_dir, expect=2, growth="null")
    assert "its model has grown; go on with the run's growth section" in output
    (complete_checkpoints(run_dir)[-1] / "COMPLETE").unlink()
    newest = complete_checkpoints(run_dir)[-1]
    damaged = newest / "weight" / "blocks.0.mlp.up.weight.npy"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.unlink()  # it is a link
    damaged.write_bytes(content)
    output = train(growing_recipe, run_dir)
    assert f"damaged: {newest.name}, now damaged.{newest.name} (" in output and "its checksum is not the one" in output
    assert complete_checkpoints(run_dir)[-1].name == f"step_{STEPS:08d}"
    assert sorted(r["step"] for r in records(run_dir, "train")) == list(range(1, STEPS + 1))


def test_growth_is_refused_and_logged_while_the_rate_decays_and_when_nothing_fits(
    growing_recipe: Path, tmp_path: Path
) -> None:
    runs = {
        "late": ["growth.policy={name: schedule, at: [0.9]}"],
        "unfit": ["growth.operator=untie", "model.uses=2", "growth.policy=greedy"],
    }
    said = launch(growing_recipe, tmp_path, runs, ranks=1)
    assert said.count("note: no growth at step 15: the learning rate decays there; let it grow earlier, or ") == 1
    for name, growths, reason in (("late", 0, "while the learning rate decays"), ("unfit", 2, "model.uses = 1")):
        assert len(records(tmp_path / name, "growth")) == growths
        (refusal,) = [r for r in records(tmp_path / name, "event") if r["event"] == "growth refused"]
        assert reason in refusal["reason"]
        assert records(tmp_path / name, "train")[-1]["step"] == STEPS


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["growth.operator=untie"], "growth.factor = 2: untie shares the uses"),
        (["growth.factor=1"], "growth.factor = 1: nothing grows by it; take 2 or more"),
        (["growth.lora.rank=64"], "model.lora.rank = 64: above the width of the narrowest block, 32"),
        (["growth.policy={name: schedule, at: [0.48, 0.5]}"], "has no steps; move its growth events apart"),
        (["growth.policy=plateau"], "train.eval_every = 0: growth.policy = plateau decides by validation losses"),
        (["growth.operator=mixture"], "growth.preset: mixture takes no adapters"),
        (["growth.operator=untied"], "growth.operator = untied: no such operator; did you mean untie?"),
    ],
)
def test_what_cannot_grow_is_said_before_anything_is_written(
    overrides: list[str], message: str, growing_recipe: Path, tmp_path: Path
) -> None:
    output = train(growing_recipe, tmp_path / "run", expect=2, **dict(override.split("=", 1) for override in overrides))
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()
