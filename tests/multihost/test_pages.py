"""The commands of docs/multi_node.md over two real hosts, as they stand there, with smaller things behind the names."""

from pathlib import Path

import pytest

from dsllm.training.monitor import read_metrics
from tests.multihost.hosts import Cluster
from tests.multihost.tokens import write_tokens
from tests.test_docs import commands

pytestmark = [pytest.mark.multihost, pytest.mark.slow]


def test_its_commands_look_at_two_hosts_and_train_on_them(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    write_tokens(tmp_path / "data")
    behind = {
        "hosts": cluster.hostfile,
        "/shared/runs/big": tmp_path / "run",
        "data/papers": tmp_path / "data",
        "launch/recipes/gpt2_124m.yaml": recipe,
    }
    said = []
    for words in commands("multi_node.md", "sh hosts"):
        master = ["--master_addr", cluster.hosts["node1"].address] if words[0] == "deepspeed" else []
        small = ["--train.steps=3", "--train.eval_every=0", "--train.test_samples=0"] if master else []
        done = cluster.run([words[0], *master, *(behind.get(word, word) for word in words[1:]), *small])
        assert done.returncode == 0, done.stdout
        said.append(done.stdout)
    looked, trained = said
    assert "2 hosts with 2 processes are ready" in looked and "ranks: 2" in trained
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"] == [1, 2, 3]
