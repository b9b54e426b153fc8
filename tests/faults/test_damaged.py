"""A damaged checkpoint is set aside and the one before it goes on; the run ends as if nothing had happened."""

import json
import random

import numpy as np
import pytest

from dsllm.training.checkpoints import complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.launching import train

OPTIONS = {"train__ds_config": "ds_configs/zero0.json"}


def stopped_at_8(recipe, folder):
    """A run whose last two checkpoints are those of the steps 4 and 8."""
    train(recipe, folder, **OPTIONS)
    return complete_checkpoints(folder)


def flip(path, seed):
    """One bit of a file."""
    draw, content = random.Random(seed), bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def losses(run_dir):
    return [(r["step"], r["loss"]) for r in read_metrics(run_dir) if r["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["COMPLETE", "tensors.json", "config.yaml", "exp_avg/wte.weight.npy"])
def test_a_flipped_bit_sends_the_run_to_the_checkpoint_before_and_the_end_is_the_same(file, recipe, tmp_path):
    before, newest = stopped_at_8(recipe, tmp_path)
    expected = losses(tmp_path)
    weights = np.load(newest / "weight" / "wte.weight.npy")
    flip(newest / file, seed=3)
    output = train(recipe, tmp_path, **OPTIONS)
    assert "resumes at step 4 of 8" in output
    assert "damaged: step_00000008, now damaged.step_00000008 (" in output and file in output
    assert losses(tmp_path) == expected
    assert complete_checkpoints(tmp_path) == [before, newest]
    assert np.array_equal(np.load(newest / "weight" / "wte.weight.npy"), weights)
    assert (newest.parent / "damaged.step_00000008").is_dir()


@pytest.mark.slow
def test_without_a_whole_checkpoint_the_start_is_refused_and_nothing_is_lost(recipe, tmp_path):
    found = stopped_at_8(recipe, tmp_path)
    for number, path in enumerate(found):
        flip(path / "weight" / "wte.weight.npy", number)
    output = train(recipe, tmp_path, expect=2, **OPTIONS)
    assert "no checkpoint is whole, --fresh starts over" in output and "wte.weight.npy" in output
    assert complete_checkpoints(tmp_path) == found
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "end"
