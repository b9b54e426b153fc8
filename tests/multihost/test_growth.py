"""A model that grows on two hosts, at every ZeRO stage: `deepspeed --hostfile hosts launch/train.py`, one launch.

    step 2 ─ step_00000002 ─ interpose ─ step_00000002.01 ─ both processes begin anew ─ 2 steps frozen ─ step_00000004

A start of DeepSpeed costs seconds, so each stage trains once and resumes once, and the tests look at what came of it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsllm.store import TensorStore
from dsllm.training.checkpoints import MARKER, complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.forked import forked
from tests.multihost.hosts import REPOSITORY, Cluster

pytestmark = [pytest.mark.multihost, pytest.mark.slow(seconds=12)]

KILLING = REPOSITORY / "tests" / "training" / "killing.py"


@dataclass(frozen=True)
class Job:
    """One run, and the command that trains it."""

    stage: int
    recipe: Path
    run_dir: Path

    @property
    def options(self) -> list[str | Path]:
        ds_config = REPOSITORY / "ds_configs" / f"zero{self.stage}.json"
        return ["--config", self.recipe, "--run_dir", self.run_dir, "--train.ds_config", ds_config]

    @property
    def arguments(self) -> list[str | Path]:
        return ["launch/train.py", *self.options]

    def losses(self) -> dict[tuple[str, int], float]:
        """Of steps and evaluations."""
        records = read_metrics(self.run_dir)
        return {(r["kind"], r["step"]): r["loss"] for r in records if r["kind"] in ("train", "eval")}

    def gradients(self) -> dict[int, float]:
        """Their norms by step."""
        return {r["step"]: r["grad_norm"] for r in read_metrics(self.run_dir) if r["kind"] == "train"}

    def starts(self) -> list[tuple[str, int, int]]:
        """How the run began each time: start or resume, at which step, with how many ranks."""
        events = [record for record in read_metrics(self.run_dir) if record.get("event") in ("start", "resume")]
        return [(record["event"], record["step"], record["world_size"]) for record in events]

    def store(self, name: str) -> TensorStore:
        """A checkpoint's tensors, each seen to be what its index says."""
        store = TensorStore.read(self.run_dir / "checkpoints" / name)
        store.verify(store.entries.values())
        return store

    def receipt(self) -> dict[str, Any]:
        """That of the only event."""
        (path,) = (self.run_dir / "growth").glob("*/receipt.json")
        receipt: dict[str, Any] = json.loads(path.read_text())
        return receipt


@pytest.fixture(scope="module")
def recipe(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks that become four after step 2 of 6, their matrices frozen under adapters."""
    path = tmp_path_factory.mktemp("recipe") / "growing.yaml"
    path.write_text(
        f"""
run_dir: runs/growing
model: {{name: progressive, n_layer: 2, n_head: 2, n_embd: 32, context: 32}}
data: {{path: {data_folder}}}
train: {{steps: 6, micro_batch_size: 2, global_batch_size: 8, lr: 1.0e-2, precision: fp32,
        eval_every: 6, eval_samples: 9, test_samples: 0, checkpoint_every: 2, keep_checkpoints: 9}}
growth: {{operator: interpose, lora: {{rank: 4}}, policy: {{name: schedule, at: [0.33]}}, watch_every: 0,
         probe_samples: 4}}
monitor: {{log_every: 1, tensorboard: false}}
"""
    )
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The same run as one process, without a launcher."""
    job = Job(0, recipe, tmp_path_factory.mktemp("alone"))
    forked(job.arguments)
    return job


@pytest.fixture(scope="module", params=[0, 1, 2, 3], ids="zero{}".format)
def grown(
    request: pytest.FixtureRequest, cluster: Cluster, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """The run over two hosts, from beginning to end in one launch."""
    job = Job(request.param, recipe, tmp_path_factory.mktemp(f"zero{request.param}"))
    done = cluster.deepspeed(job.arguments)
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    return job


def test_two_steps_of_diverge_move_every_adapter_and_no_bit_of_the_base(grown: Job) -> None:
    before, after = grown.store("step_00000002.01"), grown.store("step_00000004")
    adapters = [name for name in before.names() if name.endswith("lora_B")]
    assert len(adapters) == 4 * 4  # of four maps in each of four blocks
    for name in adapters:
        assert not before["weight", name].any()
        assert after["weight", name].any(), name
    base = set(before.names()) - set(after.names("exp_avg"))
    assert {name.partition(".")[2].partition(".")[0] for name in base} == {"0", "2"}  # the copies share their base
    assert len(base) == 2 * 4 * 2
    for name in before.names():
        changed = after.entries["weight", name].sha256 != before.entries["weight", name].sha256
        assert changed == (name not in base), name
    assert grown.store("step_00000006").digest(base) == before.digest(base)


def test_the_receipt_of_two_hosts_says_that_every_promise_was_kept(grown: Job) -> None:
    receipt, base = grown.receipt(), grown.store("step_00000002.01")
    assert receipt["problems"] == [] and receipt["gradients_checked"]
    assert (receipt["layers"], receipt["blocks"]) == ([2, 4], [2, 4])
    trained = set(grown.store("step_00000004").names("exp_avg"))
    assert receipt["frozen_sha256"] == base.digest(name for name in base.names() if name not in trained)
    assert receipt["new"] == 2 * 4 * 4  # A and B of each adapter
    (record,) = (record for record in read_metrics(grown.run_dir) if record["kind"] == "growth")
    assert record["plan"] == receipt["plan"]


def test_growing_on_two_hosts_follows_one_process_with_the_same_global_batch(grown: Job, alone: Job) -> None:
    assert grown.starts() == [("start", 0, 2), ("resume", 2, 2)]
    assert alone.starts() == [("start", 0, 1), ("resume", 2, 1)]
    assert grown.losses().keys() == alone.losses().keys()
    assert grown.losses() == pytest.approx(alone.losses(), abs=1e-4)
    ours, theirs = grown.gradients(), alone.gradients()
    assert list(ours) == [1, 2, 3, 4, 5, 6]
    assert [ours[step] for step in (1, 2)] == pytest.approx([theirs[step] for step in (1, 2)], rel=1e-4)
    # Adapters begin at nought, where Adam makes a whole step of a gradient's sign, and rounding may decide that.
    assert ours == pytest.approx(theirs, rel=2e-3)


def test_a_run_resumed_on_two_hosts_repeats_losses_and_gradients_bit_for_bit(cluster: Cluster, grown: Job) -> None:
    losses, gradients = grown.losses(), grown.gradients()
    last = grown.run_dir / "checkpoints" / "step_00000006"
    (last / MARKER).unlink()  # as if it had been cut off while it wrote its last checkpoint
    done = cluster.deepspeed(grown.arguments)
    assert done.returncode == 0, done.stdout
    assert grown.starts() == [("start", 0, 2), ("resume", 2, 2), ("resume", 4, 2)]
    assert (grown.losses(), grown.gradients()) == (losses, gradients)
    assert complete_checkpoints(grown.run_dir)[-1] == last


def test_a_signal_to_one_host_in_a_growth_event_ends_both_with_143_and_the_run_goes_on(
    cluster: Cluster, recipe: Path, alone: Job, tmp_path: Path
) -> None:
    job = Job(3, recipe, tmp_path)
    done = cluster.deepspeed([KILLING, *job.options, "--end=SIGTERM@1@the grown tensors are half written"])
    assert done.returncode == 143, done.stdout
    assert "stopped by SIGTERM at step 2" in done.stdout and "Traceback" not in done.stdout
    assert complete_checkpoints(job.run_dir)[-1].name == "step_00000002.01"
    done = cluster.deepspeed(job.arguments)
    assert done.returncode == 0, done.stdout
    assert job.losses() == pytest.approx(alone.losses(), abs=1e-4)
    assert job.receipt()["problems"] == []
