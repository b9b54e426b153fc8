"""`deepspeed --hostfile hosts launch/train.py` over two hosts, one process on each: what is refused.

tests/multihost/test_growth.py trains and grows on them at every ZeRO stage, tests/faults/test_lost_hosts.py has losses.
"""

import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from dsllm.data.indexed import IndexedWriter
from dsllm.data.manifest import Manifest, ShardInfo
from dsllm.tokenizer import load_tokenizer
from tests.multihost.hosts import Cluster

pytestmark = [pytest.mark.multihost, pytest.mark.slow]


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


def test_bad_input_ends_all_hosts_with_code_2_and_a_message(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    arguments = ["launch/train.py", "--config", recipe, "--run_dir", tmp_path / "run"]
    done = cluster.deepspeed([*arguments, "--data.path", tmp_path / "nowhere"])
    assert done.returncode == 2, done.stdout
    assert f"error: {tmp_path / 'nowhere'}: " in done.stdout and "Traceback" not in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_missing_hostfile_does_not_train_on_one_host(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    arguments = ["launch/train.py", "--config", recipe, "--run_dir", tmp_path / "run"]
    done = cluster.deepspeed(arguments, hostfile=tmp_path / "hosts")
    assert done.returncode == 2, done.stdout
    assert f"error: hostfile {tmp_path / 'hosts'}: No such file or directory" in done.stdout
    assert not (tmp_path / "run").exists()
