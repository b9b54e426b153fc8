"""The hosts themselves: apart from each other where real ones are, and gone when the test is."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.multihost.hosts import REPOSITORY, Cluster, hosts, missing_requirement

pytestmark = pytest.mark.multihost

CHOOSE = "import sys; from dsllm.training.network import choose_interface; print(choose_interface(sys.argv[1]))"


def network_of_this_machine() -> str:
    return subprocess.run(["ip", "address"], capture_output=True, text=True, check=True).stdout.replace("\n", " ")


def wait_until_gone(pids: list[int], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while remaining := [pid for pid in pids if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, f"still there: {remaining}"
        time.sleep(0.05)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    if reason := missing_requirement():
        pytest.skip(reason)
    return tmp_path


def test_hosts_have_own_names_addresses_and_homes(cluster: Cluster) -> None:
    for number, name in enumerate(cluster.hosts, start=1):
        words = cluster.run(["sh", "-c", "hostname; hostname -I; echo ~root"], on=name).stdout.split()
        assert words == [name, f"10.77.0.{number}", str(cluster.hosts[name].home)]


def test_one_host_reaches_another_by_ssh_and_by_pdsh(cluster: Cluster) -> None:
    assert cluster.run(["ssh", "node2", "hostname"], on="node1").stdout == "node2\n"
    assert cluster.run(["ssh", "node1", "hostname"], on="node2").stdout == "node1\n"
    done = cluster.run(["pdsh", "-S", "-R", "ssh", "-w", "node1,node2", "hostname"])
    assert sorted(done.stdout.splitlines()) == ["node1: node1", "node2: node2"]


def test_a_session_over_ssh_inherits_nothing_of_the_caller(cluster: Cluster) -> None:
    done = cluster.run(["ssh", "node2", "echo ${CALLER:-unset}"], env={"CALLER": "set"})
    assert done.stdout == "unset\n"


def test_hosts_share_files_but_not_their_local_disk(cluster: Cluster) -> None:
    cluster.run(["touch", cluster.disk / "of-node1", cluster.folder / "shared"], on="node1")
    done = cluster.run(["ls", cluster.disk / "of-node1", cluster.folder / "shared"], on="node2")
    assert done.returncode != 0 and f"{cluster.folder / 'shared'}\n" in done.stdout


def test_a_kill_by_name_reaches_only_the_host_it_is_given_on(cluster: Cluster) -> None:
    sleeping = {name: cluster.start(["sleep", "60"], on=name) for name in cluster.hosts}
    while cluster.run(["pgrep", "sleep"], on="node2").returncode != 0:
        time.sleep(0.05)
    cluster.run(["pkill", "sleep"], on="node2")
    sleeping["node2"].communicate(timeout=10)
    assert sleeping["node1"].poll() is None
    cluster.end_jobs()
    sleeping["node1"].communicate(timeout=10)


@pytest.mark.parametrize("on", ["node1", "node2"])
def test_the_interface_to_the_master_is_found_on_every_host(cluster: Cluster, on: str) -> None:
    for master, interface in [("10.77.0.1", "eth0"), ("127.0.0.1", "lo")]:
        assert cluster.run(["python", "-c", CHOOSE, master], on=on).stdout == f"{interface}\n"


def test_a_master_out_of_reach_is_named_with_the_host(cluster: Cluster) -> None:
    done = cluster.run(["python", "-c", CHOOSE, "192.0.2.1"], on="node2")
    assert "MASTER_ADDR 192.0.2.1: node2 has no route to it (Network is unreachable)" in done.stdout


def test_a_host_whose_cable_is_pulled_is_out_of_reach(two: Path) -> None:
    with hosts(2, two) as cluster:
        cluster.cut("node2")
        done = cluster.run(["ssh", "-o", "ConnectTimeout=1", "node2", "true"])
        assert done.returncode == 255


def test_a_host_without_power_is_gone_and_the_others_stay(two: Path) -> None:
    with hosts(2, two) as cluster:
        pids = [process.pid for process in cluster.hosts["node2"].processes()]
        cluster.kill("node2")
        wait_until_gone(pids)
        assert cluster.run(["hostname"], on="node1").stdout == "node1\n"


def test_two_clusters_side_by_side_do_not_meet_and_this_machine_sees_neither(two: Path) -> None:
    before = network_of_this_machine()
    with hosts(2, two / "a") as a, hosts(1, two / "b") as b:
        assert a.run(["ssh", "node2", "hostname"]).stdout == "node2\n"
        assert b.run(["ssh", "-o", "ConnectTimeout=1", "10.77.0.2", "hostname"]).returncode == 255
        assert network_of_this_machine() == before


def test_an_error_in_the_test_leaves_no_process(two: Path) -> None:
    with pytest.raises(KeyError), hosts(2, two) as cluster:
        cluster.start(["sleep", "60"], on="node2")
        pids = [process.pid for host in cluster.hosts.values() for process in host.processes()]
        raise KeyError
    wait_until_gone(pids)


def test_a_killed_test_leaves_no_process(two: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from tests.multihost.hosts import hosts\n"
        "with hosts(2, pathlib.Path(sys.argv[1])) as cluster:\n"
        "    cluster.start(['sleep', '60'], on='node2')\n"
        "    print(*(p.pid for host in cluster.hosts.values() for p in host.processes()), flush=True)\n"
        "    time.sleep(60)\n"
    )
    test = subprocess.Popen(
        [sys.executable, "-c", script, two],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert test.stdout is not None
    pids = [int(pid) for pid in test.stdout.readline().split()]
    assert len(pids) >= 4 and all(psutil.pid_exists(pid) for pid in pids)
    test.kill()
    test.communicate()
    wait_until_gone(pids)
