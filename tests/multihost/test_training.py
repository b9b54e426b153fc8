"""`deepspeed --hostfile hosts launch/train.py` over two hosts, one process on each, at every ZeRO stage.

A start of DeepSpeed costs seconds, so each stage trains once and resumes once, and the tests look at what came of it.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from dsllm.data.indexed import IndexedWriter
from dsllm.data.manifest import Manifest, ShardInfo
from dsllm.tokenizer import load_tokenizer
from dsllm.training.checkpoints import MARKER, checkpoint_name, complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.multihost.hosts import REPOSITORY, Cluster

pytestmark = [pytest.mark.multihost, pytest.mark.slow(seconds=15)]

STEPS, SAVED = 6, 3
"""Of the whole run, and between its checkpoints."""


@dataclass(frozen=True)
class Job:
    """One configuration of one ZeRO stage, with its run's folder."""

    stage: int
    recipe: Path
    run_dir: Path

    @property
    def arguments(self) -> list[str | Path]:
        ds_config = REPOSITORY / "ds_configs" / f"zero{self.stage}.json"
        return ["launch/train.py", "--config", self.recipe, "--run_dir", self.run_dir, "--train.ds_config", ds_config]

    def trajectory(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm by step, as recorded."""
        records = [record for record in read_metrics(self.run_dir) if record["kind"] == "train"]
        return {record["step"]: (record["loss"], record["grad_norm"]) for record in records}

    def starts(self) -> list[tuple[str, int, int]]:
        """How the run began each time: start or resume, at which step, with how many ranks."""
        events = [record for record in read_metrics(self.run_dir) if record.get("event") in ("start", "resume")]
        return [(record["event"], record["step"], record["world_size"]) for record in events]


def write_tokens(folder: Path) -> None:
    """A training split of 200 documents, by the byte tokenizer."""
    folder.mkdir()
    draw, tokenizer = random.Random(0), load_tokenizer("bytes")
    with IndexedWriter(folder / "train_00000", tokenizer.dtype) as writer:
        for _ in range(200):
            text = "".join(draw.choices("induction ", k=200))
            writer.add(np.append(tokenizer.encode(text), tokenizer.end_of_text))
        pair = writer.finish()
    Manifest(
        complete=True,
        tokenizer=tokenizer.info,
        source={"files": ["induction"]},
        split_rule={"train": 1.0},
        shards=[ShardInfo(split="train", name="train_00000", text_bytes=200 * 200, **asdict(pair))],
    ).write(folder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on prepared text: two sequences a rank, accumulated twice on two ranks and four times on one."""
    folder = tmp_path_factory.mktemp("recipe")
    write_tokens(folder / "data")
    config = {
        "run_dir": str(folder / "unnamed"),
        "model": {"name": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "context": 32},
        "data": {"path": str(folder / "data")},
        "train": {
            "steps": STEPS,
            "micro_batch_size": 2,
            "global_batch_size": 8,
            "lr": 0.01,
            "precision": "fp32",
            "eval_every": 0,
            "test_samples": 0,
            "checkpoint_every": SAVED,
        },
        "monitor": {"log_every": 1, "tensorboard": False},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def alone(cluster: Cluster, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The same run as one process, without a launcher."""
    job = Job(0, recipe, tmp_path_factory.mktemp("alone"))
    done = cluster.run(["python", *job.arguments])
    assert done.returncode == 0, done.stdout
    return job


@pytest.fixture(scope="module", params=[0, 1, 2, 3], ids="zero{}".format)
def trained(
    request: pytest.FixtureRequest, cluster: Cluster, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """The run over two hosts, from beginning to end."""
    job = Job(request.param, recipe, tmp_path_factory.mktemp(f"zero{request.param}"))
    done = cluster.deepspeed(job.arguments)
    assert done.returncode == 0, done.stdout
    return job


def test_two_hosts_train_as_one_process_with_the_same_global_batch(trained: Job, alone: Job) -> None:
    assert (trained.starts(), alone.starts()) == ([("start", 0, 2)], [("start", 0, 1)])
    assert list(trained.trajectory()) == list(range(1, STEPS + 1))
    for step, values in trained.trajectory().items():
        assert values == pytest.approx(alone.trajectory()[step], rel=1e-4), f"step {step}"


def test_a_run_resumed_on_two_hosts_repeats_losses_and_gradients_bit_for_bit(cluster: Cluster, trained: Job) -> None:
    uninterrupted = trained.trajectory()
    last = trained.run_dir / "checkpoints" / checkpoint_name(STEPS)
    (last / MARKER).unlink()  # as if it had been cut off while it wrote its last checkpoint
    done = cluster.deepspeed(trained.arguments)
    assert done.returncode == 0, done.stdout
    assert trained.starts() == [("start", 0, 2), ("resume", SAVED, 2)]
    assert trained.trajectory() == uninterrupted
    assert complete_checkpoints(trained.run_dir)[-1] == last


def test_bad_input_ends_all_hosts_with_code_2_and_a_message(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    job = Job(0, recipe, tmp_path / "run")
    done = cluster.deepspeed([*job.arguments, "--data.path", tmp_path / "nowhere"])
    assert done.returncode == 2, done.stdout
    assert f"error: {tmp_path / 'nowhere'}: " in done.stdout and "Traceback" not in done.stdout
    assert not job.run_dir.exists()


def test_a_missing_hostfile_does_not_train_on_one_host(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    job = Job(0, recipe, tmp_path / "run")
    done = cluster.deepspeed(job.arguments, hostfile=tmp_path / "hosts")
    assert done.returncode == 2, done.stdout
    assert f"error: hostfile {tmp_path / 'hosts'}: No such file or directory" in done.stdout
    assert not job.run_dir.exists()
