"""A model of several levels grows as it trains, and its checkpoints grow without, by the parts of all models."""

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from dsllm.errors import ConfigError
from dsllm.training.checkpoints import complete_checkpoints, find_checkpoint
from dsllm.training.loading import load_model
from dsllm.training.monitor import read_metrics
from dsllm.training.offline import grow, plan_growth
from tests.forked import forked
from tests.launching import REPOSITORY

GROWN_AT, STEPS = 4, 16
RUNS = {
    "zero2": [
        "growth.operator={name: interpose, levels: [1]}",
        "growth.preset=diverge_consolidate",
        "growth.policy={name: schedule, at: [0.25, 0.75]}",
        "train.ds_config=ds_configs/zero2.json",
    ],
    "zero3": ["growth.operator={name: dropin, levels: [0, 2], steps: 3}", "train.ds_config=ds_configs/zero3.json"],
}


@pytest.fixture(scope="module")
def levels_recipe(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three levels and the blocks A0 B1 C2 D1, which grow after 4 of 16 steps, in fp32."""
    path = tmp_path_factory.mktemp("recipe") / "levels.yaml"
    path.write_text(
        f"""
run_dir: unnamed
model: {{name: conv_attention, n_head: 2, n_embd: 32, context: 32, strides: [2, 4], widths: [16, 24, 32],
        encoder: [1, 1], middle: 1, decoder: [0, 1]}}
data: {{path: {data_folder}}}
train: {{steps: {STEPS}, micro_batch_size: 4, global_batch_size: 16, lr: 5.0e-3, schedule: wsd, warmup_tokens: 0,
        decay_tokens: 512, precision: fp32, eval_every: 0, test_samples: 0, checkpoint_every: 0, keep_checkpoints: 9}}
growth: {{preset: no_diverge, lora: {{rank: 4}}, policy: {{name: schedule, at: [0.25]}}, probe_samples: 4,
         watch_every: 5}}
monitor: {{log_every: 1, tensorboard: false}}
"""
    )
    return path


def launch(recipe: Path, folder: Path, runs: dict[str, list[str]], ranks: int) -> str:
    script = [Path(__file__).parent / "growing_runs.py", recipe, folder, json.dumps(runs)]
    return forked(script, ranks)


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run_dir) if record["kind"] == kind]


@pytest.fixture(scope="module")
def grown(levels_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    launch(levels_recipe, folder, RUNS, ranks=1)
    return folder


def check_run(run_dir: Path) -> list[dict[str, Any]]:
    """All steps were made, the loss fell after the first event, and every receipt found what was promised."""
    losses = [record["loss"] for record in records(run_dir, "train")]
    assert len(losses) == STEPS and all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[GROWN_AT] - 0.05
    receipts = records(run_dir, "growth")
    for receipt in receipts:
        assert receipt["problems"] == []
        if receipt["preserves_function"] and receipt["operator"] != "merge":
            assert (receipt["delta_loss"], receipt["delta_logit"], receipt["delta_kl"]) == (0, 0, 0)
    return receipts


def test_one_level_grows_twice_under_adapters_that_are_merged_in_between_at_zero_2(grown: Path) -> None:
    receipts = check_run(grown / "zero2")
    events = [(r["operator"], r["step"], r["blocks_after"], r["layers_after"]) for r in receipts]
    assert events == [("interpose", 4, 6, 10), ("merge", 6, 6, 10), ("interpose", 12, 10, 14), ("merge", 13, 10, 14)]
    assert all(receipt["gradients_checked"] for receipt in receipts)
    model = load_model(grown / "zero2")
    assert (model.config.encoder, model.config.middle, model.config.decoder) == ((1, 4), 1, (0, 4))
    matrices = [block.mlp.up.weight for block in model.blocks[1:5]]
    assert all(not a.equal(b) for i, a in enumerate(matrices) for b in matrices[:i])


def test_gates_open_on_chosen_levels_at_zero_3(grown: Path) -> None:
    (receipt,) = check_run(grown / "zero3")
    assert (receipt["operator"], receipt["gradients_checked"], receipt["blocks_after"]) == ("dropin", True, 6)
    model = load_model(grown / "zero3")
    assert (model.config.encoder, model.config.middle, model.config.decoder) == ((2, 1), 2, (0, 1))
    assert model.gates is not None and model.gates.opening == 1


def test_the_layers_of_a_run_are_looked_at_copies_apart_and_levels_never_compared(grown: Path) -> None:
    layers = {record["step"]: record for record in records(grown / "zero2", "layers")}
    assert layers[4]["divergence"] == {"1-2": 0, "4-5": 0} and len(layers[4]["gradient_norm"]) == 6
    assert all(0 < distance < 2 for distance in layers[9]["divergence"].values())
    assert [len(layers[step]["residual_ratio"]) for step in (4, 9, 14)] == [10, 10, 14]
    assert all(ratio > 0 for ratio in layers[14]["residual_ratio"])


def test_a_checkpoint_grows_on_one_level_without_training(grown: Path, tmp_path: Path) -> None:
    source = find_checkpoint(complete_checkpoints(grown / "zero3")[0])
    plan = plan_growth(source, {"name": "zero_init", "levels": [2]})
    receipt = grow(source, plan, tmp_path / "deep")
    assert receipt.problems == [] and receipt.difference.logit == 0 and receipt.blocks == (4, 5)
    assert load_model(tmp_path / "deep").config.middle == 2
    for operator, message in (("stack", "growth.operator = stack: would make"), ("untie", "needs model.uses")):
        with pytest.raises(ConfigError, match=message):
            plan_growth(source, operator)


def test_a_level_that_is_not_there_is_one_message_and_exit_code_2(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = complete_checkpoints(grown / "zero3")[0]
    words = [str(source), "--operator", "{name: interpose, levels: [9]}", "--out", str(tmp_path / "deep")]
    monkeypatch.setattr(sys, "argv", ["grow.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "launch" / "grow.py"), run_name="__main__")
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in told and not list(tmp_path.iterdir())
    assert "growth.operator.levels = [9]: no blocks on level 9; take some of 0, 1, 2, or null for all" in told


@pytest.mark.slow(seconds=40)
def test_it_grows_on_two_ranks_at_every_zero_stage(levels_recipe: Path, tmp_path: Path) -> None:
    operators = [
        "zero_init",
        "{name: interpose, levels: [0, 1]}",
        "{name: dropin, steps: 4, kind: channel}",
        "zero_init",
    ]
    runs = {
        f"zero{stage}": [
            f"growth.operator={operator}",
            f"growth.preset={'diverge_only' if stage % 2 else 'no_diverge'}",
            f"train.ds_config=ds_configs/zero{stage}.json",
        ]
        for stage, operator in enumerate(operators)
    }
    launch(levels_recipe, tmp_path, runs, ranks=2)
    for name in runs:
        (receipt,) = check_run(tmp_path / name)
        assert receipt["gradients_checked"]
