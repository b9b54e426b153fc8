"""A run with train.compile takes the steps of one without, at ZeRO 0, 2 and 3, and says what it lacks."""

import shutil
import sys
from pathlib import Path

import pytest

from dsllm.training.monitor import read_metrics
from tests.launching import run, train

pytestmark = [
    pytest.mark.slow(seconds=25),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]
GROWTH = "{operator: zero_init, policy: {name: schedule, at: [0.5]}, lora: {rank: 4}, watch_every: 1}"
CONV = (
    "{name: conv_attention, n_head: 2, n_embd: 32, context: 32, strides: [4], widths: [16, 32], "
    "encoder: [1], middle: 1, decoder: [1]}"
)
UNJUDGED = {"train__eval_every": 0, "train__test_samples": 0}
GROWS = {"model": "{name: progressive, n_layer: 2, n_head: 2, n_embd: 32, context: 32}", "growth": GROWTH}


def losses(run_dir: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run_dir) if record["kind"] in ("train", "eval")]


@pytest.mark.parametrize(
    ("ranks", "stage", "options"),
    [
        (1, 2, {"model": CONV, "train__activation_checkpointing": "{levels: [0]}", **UNJUDGED}),
        (1, 0, {**GROWS, "train__schedule": "wsd"}),
        (2, 3, {"train__activation_checkpointing": "all"}),
    ],
    ids=["convolution attention", "a model that grows", "parted weights, all recomputed"],
)
def test_losses_are_those_of_a_run_without(ranks, stage, options, recipe, tmp_path):
    found = []
    for compiled in (False, True):
        run_dir = tmp_path / str(compiled)
        options = {**options, "train__ds_config": f"ds_configs/zero{stage}.json", "train__compile": compiled}
        train(recipe, run_dir, ranks=ranks, **options)
        found.append(losses(run_dir))
    assert len(found[0]) >= 8
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_machine_without_a_compiler_is_told_before_anything_is_written(recipe, tmp_path):
    command = [sys.executable, "launch/train.py", f"--config={recipe}", f"--run_dir={tmp_path / 'run'}"]
    said = run(["env", "CXX=/no/compiler", *command, "--train.compile=true"], expect=2)
    assert "error: train.compile = true: torch finds no C++ compiler; install g++, or take false" in said
    assert not (tmp_path / "run").exists()
