"""What `deepspeed --hostfile hosts launch/train.py` over two hosts refuses, and how all of them end then."""

from pathlib import Path

import pytest

from tests.multihost.hosts import Cluster

pytestmark = [pytest.mark.multihost, pytest.mark.slow]


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
