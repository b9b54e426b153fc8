"""`launch/preflight.py` finds what would fail a launch, before it."""

import signal
import time
from pathlib import Path

import pytest

from dsllm.training.agreement import code_checksum
from tests.data.folders import documents, write_folder
from tests.multihost.hosts import REPOSITORY, Cluster, Result

pytestmark = pytest.mark.multihost

PREFLIGHT = REPOSITORY / "launch" / "preflight.py"


def preflight(
    cluster: Cluster, *options: str | Path, hostfile: Path | None = None, cwd: Path = REPOSITORY, mb: int = 4
) -> Result:
    hosts = cluster.hostfile if hostfile is None else hostfile
    return cluster.run(["python", PREFLIGHT, "--hostfile", hosts, "--mb", str(mb), *options], cwd=cwd)


def written(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def cells(output: str) -> dict[str, list[str]]:
    """The rows of the table by host."""
    rows = [line.split() for line in output.splitlines() if line.startswith("node")]
    return {row[0]: row[1:] for row in rows if not row[0].endswith(":")}


@pytest.fixture(scope="module")
def passed(cluster: Cluster) -> Result:
    """Two hosts as they should be, looked at with a run's folder and data on shared storage."""
    data = write_folder(cluster.folder / "data", {"train": [documents(0, 10)]})
    return preflight(cluster, "--run_dir", cluster.folder / "runs" / "new", "--data", data, mb=64)


@pytest.fixture(scope="module")
def refused(cluster: Cluster) -> Result:
    """Two hosts with other code, other data and run folders of their own, a bad `.deepspeed_env`, and a port taken."""
    for number, host in enumerate(cluster.hosts.values()):
        package = host.disk / "other" / "dsllm"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"number = {number}\n")
        write_folder(host.disk / "data", {"train": [documents(number, 10)]})
    (cluster.hosts["node1"].disk / "other" / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n\n# ours\n")
    options = ["--run_dir", cluster.disk / "run", "--data", cluster.disk / "data"]
    listening = cluster.start(["python", "-m", "http.server", "29500"], on="node1", cwd=cluster.disk)
    try:
        assert listening.stdout is not None
        cluster.run(
            ["bash", "-c", "until (: < /dev/tcp/127.0.0.1/29500) 2> /dev/null; do sleep 0.05; done"], timeout=20
        )
        return preflight(cluster, *options, cwd=cluster.disk / "other")
    finally:
        cluster.end_jobs()
        listening.communicate()


def test_hosts_that_agree_pass(passed: Result) -> None:
    assert passed.returncode == 0, passed.stdout
    assert passed.stdout.splitlines()[-1] == "2 hosts with 2 processes are ready"


def test_a_row_for_each_host_says_what_it_is(passed: Result) -> None:
    header, rows = passed.stdout.splitlines()[0].split(), cells(passed.stdout)
    assert header[:6] == ["host", "slots", "GPUs", "python", "torch", "deepspeed"]
    assert list(rows) == ["node1", "node2"]
    assert rows["node1"][:5] == rows["node2"][:5]
    for row in rows.values():
        assert row[5] == code_checksum(REPOSITORY / "dsllm")[:12]  # by which the ranks compare it, too
        assert row[8:10] == ["shared", "eth0"]


def test_latency_and_bandwidth_to_the_first_host_are_measured(passed: Result) -> None:
    rows = cells(passed.stdout)
    assert rows["node1"][10:] == ["–", "–"]
    milliseconds, megabytes_per_second = map(float, rows["node2"][10:])
    assert 0 < milliseconds < 50
    assert megabytes_per_second > 50


def test_an_ssh_that_waits_for_ever_for_a_dead_host_is_warned_of(cluster: Cluster, passed: Result) -> None:
    assert "warning" not in passed.stdout
    config = cluster.hosts["node1"].home / ".ssh" / "config"
    text = config.read_text()
    config.write_text(text.replace("ServerAliveInterval", "# ServerAliveInterval"))
    try:
        done = preflight(cluster)
    finally:
        config.write_text(text)
    assert done.returncode == 0
    assert "warning: ssh to node1 and node2 would wait for ever" in done.stdout
    assert "`ServerAliveInterval 10`" in done.stdout


def test_nothing_is_left_in_the_folders_looked_at(passed: Result, cluster: Cluster) -> None:
    assert passed.returncode == 0
    assert not list(cluster.folder.glob(".preflight*")) and not (cluster.folder / "runs").exists()


def test_all_problems_come_at_once_as_one_error(refused: Result) -> None:
    assert refused.returncode == 2
    assert ": 5 problems\n" in refused.stdout and "Traceback" not in refused.stdout
    assert "are ready" not in refused.stdout


@pytest.mark.parametrize(
    "problem",
    [
        ".deepspeed_env: line 2 is blank, take it out; line 3 is the comment '# ours', take it out",
        "dsllm: code {code1} on node1, code {code2} on node2; bring the repository to one state everywhere",
        "data {disk}/data: manifest.json: ",
        "run_dir {disk}/run: node2 does not see what this machine writes there",
        "node1: port 29500, where the ranks meet, is taken; end what holds it",
    ],
    ids=["deepspeed_env", "code", "data", "run_dir", "port"],
)
def test_what_differs_is_named_with_hosts_and_cure(refused: Result, cluster: Cluster, problem: str) -> None:
    codes = [code_checksum(host.disk / "other" / "dsllm")[:12] for host in cluster.hosts.values()]
    assert problem.format(disk=cluster.disk, code1=codes[0], code2=codes[1]) in refused.stdout


def test_one_host_passes(cluster: Cluster, tmp_path: Path) -> None:
    done = preflight(cluster, "--run_dir", cluster.disk / "run", hostfile=written(tmp_path, "node1 slots=2\n"))
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "1 host with 2 processes is ready"


def test_a_host_that_does_not_answer_is_named(cluster: Cluster, tmp_path: Path) -> None:
    done = preflight(cluster, hostfile=written(tmp_path, "node1 slots=1\nnode9 slots=1\n"))
    assert done.returncode == 2
    assert ": 1 problem\n" in done.stdout and "node9: cannot be reached" in done.stdout
    assert "Traceback" not in done.stdout
    assert cells(done.stdout)["node9"][1:] == ["–"] * 10


def test_localhost_without_an_ssh_server_is_told_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    done = preflight(cluster, hostfile=written(tmp_path, "localhost slots=2\n"))
    assert done.returncode == 2
    assert "localhost: cannot be reached" in done.stdout and "leave --hostfile out" in done.stdout


@pytest.mark.slow
def test_a_host_that_hangs_does_not_hang_preflight(cluster: Cluster) -> None:
    resident = cluster.hosts["node2"].processes()
    servers = [process for process in resident if process.name() == "sshd"]
    for process in servers:
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        done = preflight(cluster)
    finally:
        for process in servers:
            process.send_signal(signal.SIGCONT)
    assert done.returncode == 2 and "node2: " in done.stdout
    assert time.monotonic() - began < 60


def test_a_folder_that_another_host_lacks_is_named(cluster: Cluster) -> None:
    (cluster.hosts["node1"].disk / "project").mkdir()
    done = preflight(cluster, cwd=cluster.disk / "project")
    assert done.returncode == 2
    assert f"node2: no folder {cluster.disk / 'project'}" in done.stdout


def test_a_host_without_the_interpreter_is_named(cluster: Cluster, tmp_path: Path) -> None:
    python = cluster.run(["python", "-c", "import sys; print(sys.executable)"]).stdout.strip()
    assert cluster.run(["mount", "--bind", tmp_path, Path(python).parent], on="node2").returncode == 0
    try:
        done = preflight(cluster)
    finally:
        cluster.run(["umount", Path(python).parent], on="node2")
    assert done.returncode == 2
    assert f"node2: no {python}; install dsllm there at the same path as here" in done.stdout


def test_a_slow_link_is_warned_of(cluster: Cluster) -> None:
    slow = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "80mbit", "burst", "64kb", "latency", "1s"]
    made = cluster.run(slow, on="node2")
    if made.returncode:
        pytest.skip(f"no slow link can be made here: {made.stdout.strip()}")
    try:
        done = preflight(cluster)
    finally:
        cluster.run(["tc", "qdisc", "del", "dev", "eth0", "root"], on="node2")
    assert done.returncode == 0, done.stdout
    assert 5 < float(cells(done.stdout)["node2"][11]) < 15
    assert "MB/s to node1; the gradients of GPT-2's 124 million parameters" in done.stdout


def test_an_address_that_hosts_cannot_reach_is_named(cluster: Cluster) -> None:
    done = preflight(cluster, "--master_addr", "10.77.0.99")
    assert done.returncode == 2
    assert "node2: cannot send to 10.77.0.99 (" in done.stdout and "pass --master_addr" in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [("node1", "line 1 is 'node1', write it as `HOST slots=8`"), ("node1 slots=8x", "slots=8x"), ("", "names no host")],
)
def test_a_malformed_hostfile_is_one_message(cluster: Cluster, tmp_path: Path, line: str, message: str) -> None:
    done = preflight(cluster, hostfile=written(tmp_path, line + "\n"))
    assert done.returncode == 2
    assert message in done.stdout and "Traceback" not in done.stdout
