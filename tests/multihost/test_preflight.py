"""`launch/preflight.py` finds what would fail a launch, before it."""

from pathlib import Path

import pytest

from tests.multihost.hosts import REPOSITORY, Cluster

pytestmark = pytest.mark.multihost

PREFLIGHT = REPOSITORY / "launch" / "preflight.py"


def preflight(cluster: Cluster, hostfile: Path, cwd: Path = REPOSITORY):
    return cluster.run(["python", PREFLIGHT, "--hostfile", hostfile], cwd=cwd)


def test_hosts_that_answer_pass(cluster: Cluster) -> None:
    done = preflight(cluster, cluster.hostfile)
    assert done.returncode == 0, done.stdout
    assert "2 hosts with 2 processes answer" in done.stdout


def test_a_host_that_does_not_answer_is_named(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node1 slots=1\nnode9 slots=1\n")
    done = preflight(cluster, tmp_path / "hosts")
    assert done.returncode == 2
    assert "1 of 2 hosts" in done.stdout and "node9: cannot be reached" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_folder_that_another_host_lacks_is_named(cluster: Cluster) -> None:
    (cluster.hosts["node1"].disk / "project").mkdir()
    done = preflight(cluster, cluster.hostfile, cwd=cluster.disk / "project")
    assert done.returncode == 2
    assert f"node2: no folder {cluster.disk / 'project'}" in done.stdout


@pytest.mark.parametrize(
    "line, message",
    [("node1", "line 1 is 'node1', write it as `HOST slots=8`"), ("node1 slots=8x", "slots=8x"), ("", "names no host")],
)
def test_a_malformed_hostfile_is_one_message(cluster: Cluster, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "hosts").write_text(line + "\n")
    done = preflight(cluster, tmp_path / "hosts")
    assert done.returncode == 2
    assert message in done.stdout and "Traceback" not in done.stdout
