"""Losses and gradients that are no numbers, or spike, on one rank of two: no rank's weights see them."""

import numpy as np
import pytest

from dsllm.training.checkpoints import Checkpoint
from dsllm.training.monitor import read_metrics
from tests.forked import forked
from tests.launching import train

BAD = """
import sys, torch
from dsllm import BaseTrainer
from dsllm.training.command import run

LOSS, GRADIENT, SPIKE = 3, 5, 7     # the steps that are disturbed, on the last rank alone

class Disturbed(BaseTrainer):
    def loss(self, batch):
        loss = super().loss(batch)
        step = self.progress.step + 1
        if self.world.rank == self.world.size - 1:
            if step == LOSS:
                return loss * float("nan")
            if step == GRADIENT:
                loss.register_hook(lambda gradient: gradient * float("inf"))
            if step == SPIKE:
                loss.register_hook(lambda gradient: gradient * 1e6)
        return loss

run(Disturbed, sys.argv[1:])
"""

ALWAYS = """
import sys
from dsllm import BaseTrainer
from dsllm.training.command import run

class Lost(BaseTrainer):
    def loss(self, batch):
        return super().loss(batch) * (float("nan") if self.progress.step >= 2 and self.world.rank == 0 else 1.0)

run(Lost, sys.argv[1:])
"""


def tensors(run_dir, step):
    """Every array of a step's checkpoint, by its file's name."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    return {str(path.relative_to(folder)): np.load(path) for path in folder.rglob("*.npy")}


def disturbed(script_text, recipe, folder, ranks, stage, expect=0, **options):
    script = folder / "disturbed.py"
    script.write_text(script_text)
    settings = [f"--{key.replace('__', '.')}={value}" for key, value in options.items()]
    common = ["--config", recipe, "--run_dir", folder / "run", f"--train.ds_config=ds_configs/{stage}.json"]
    return forked([script, *common, *settings], ranks, expect)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_bad_numbers_on_one_rank_are_skipped_on_all_and_told(stage, recipe, tmp_path):
    options = {"train__checkpoint_every": 1, "train__keep_checkpoints": 9, "train__eval_every": 0}
    spikes = {"train__spike_window": 8, "train__spike_sigma": 3, "train__max_skips": 3}
    disturbed(BAD, recipe, tmp_path, 2, stage, **options, **spikes)
    run_dir = tmp_path / "run"
    skipped = {r["step"]: r for r in read_metrics(run_dir) if r.get("event") == "skipped step"}
    assert list(skipped) == [3, 5, 7]
    assert skipped[3]["reason"] == "its loss is nan"
    assert skipped[5]["reason"] == "its gradient norm is inf"
    assert skipped[7]["reason"].startswith("its log of the gradient norm is ")
    assert skipped[7]["grad_norm"] > 1e3
    for step, record in skipped.items():
        assert len(record["samples"]) == 8
        before, after = tensors(run_dir, step - 1), tensors(run_dir, step)
        assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    for step in (4, 6, 8):
        assert not np.array_equal(*(tensors(run_dir, at)["weight/wte.weight.npy"] for at in (step - 1, step)))
    progress = Checkpoint.read(run_dir / "checkpoints" / "step_00000008").progress
    assert (progress.skipped, progress.consumed_samples) == (3, 64)


@pytest.mark.slow
def test_too_many_in_a_row_end_the_run_with_code_2_and_the_samples_and_nothing_is_lost(recipe, tmp_path):
    options = {"train__checkpoint_every": 2, "train__max_skips": 5, "train__eval_every": 0}
    output = disturbed(ALWAYS, recipe, tmp_path, 2, "zero2", expect=2, **options)
    assert "5 updates in a row were skipped, steps 3 to 7; the last: its loss is nan, samples" in output
    assert output.count("error: ") == 1 and "Traceback" not in output
    run_dir = tmp_path / "run"
    assert Checkpoint.read(run_dir / "checkpoints" / "step_00000006").progress.skipped == 4
    last = [r for r in read_metrics(run_dir) if r.get("event") == "skipped step"][-1]
    assert str(last["samples"][0]) in output
    options["train__max_skips"] = 20
    train(recipe, run_dir, **options)  # healed: the same data without the poison
    assert Checkpoint.read(run_dir / "checkpoints" / "step_00000008").progress.skipped == 4
