"""What preflight makes of answers that hosts of one machine cannot give."""

from typing import Any

import pytest

from dsllm.training.preflight.checks import problems_of, warnings_of
from dsllm.training.preflight.facts import Host, HostFacts, Launch, Link, Storage
from dsllm.training.preflight.table import table

LAUNCH = Launch(run_dir="/shared/run", data=[], master_addr="10.0.0.1", master_port=29500, on_cpu=False)


def host(number: int, slots: int = 8, link: Link | None = None, ahead: float = 0.0, **facts: Any) -> Host:
    """A healthy host with eight GPUs, but for `facts`."""
    usual = {
        "machine": f"node{number} boot{number}",
        "python": "3.11.7",
        "versions": {"torch": "2.13.0", "psutil": "7.2.2"},
        "code": "9c1d52ab07e4",
        "commit": "b84a235",
        "gpus": 8,
        "cores": 64,
        "memory": 10**12,
        "shm": 8 << 30,
        "storage": Storage(folder="/shared", free=10**12, writable=True, shared=True),
        "data": {},
        "interface": "eth0",
        "master_port_free": True,
        "spare_port": 41234,
        "clock": 0.0,
    }
    return Host(f"node{number}", slots, HostFacts.model_validate({**usual, **facts}), link, ahead)


def test_healthy_hosts_have_no_problem_and_no_warning() -> None:
    hosts = [host(1), host(2, link=Link(milliseconds=0.1, megabytes_per_second=1200))]
    assert (problems_of(hosts, LAUNCH), warnings_of(hosts, LAUNCH)) == ([], [])


def test_a_difference_among_many_hosts_is_one_line_and_the_usual_value_comes_first() -> None:
    hosts = [host(1, versions={"torch": "2.12.1"}), *(host(number) for number in range(2, 10))]
    hosts[4].facts = host(5, versions={}).facts
    assert problems_of(hosts, LAUNCH) == [
        "torch: 2.13.0 on node2, node3 and 5 more, 2.12.1 on node1, missing on node5; install one version everywhere"
    ]


def test_one_state_of_the_code_under_two_commits_is_no_problem() -> None:
    assert problems_of([host(1), host(2, commit="0000000"), host(3, commit=None)], LAUNCH) == []


def test_two_names_of_one_machine_are_refused() -> None:
    machine = {"machine": "alpha 9ba7aa22"}
    assert problems_of([host(1, **machine), host(2, **machine)], LAUNCH) == [
        "node1 and node2: one machine, alpha; keep one line for it, with all its slots"
    ]


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"gpus": 4}, "node2: slots=8, but 4 GPUs; write slots=4"),
        ({"gpus": 0}, "node2: slots=8, but no GPUs; take it out of the hostfile"),
        ({"code": None}, "missing on node2; bring the repository to one state everywhere"),
        ({"interface": None}, "node2: no interface leads to the master's address 10.0.0.1; pass --master_addr"),
        ({"interface": "lo"}, "node2: the master's address 10.0.0.1 is a loopback address; pass --master_addr"),
    ],
)
def test_what_a_host_lacks_is_a_problem(facts: dict[str, Any], problem: str) -> None:
    (found,) = problems_of([host(1), host(2, **facts)], LAUNCH)
    assert problem in found


@pytest.mark.parametrize(
    ("facts", "warning"),
    [
        ({"gpus": None}, "node2: nvidia-smi fails there"),
        ({"ahead": -7.2}, "node2: its clock is 7 s behind this machine's"),
        ({"memory": 10**9}, "node2: 1.0 GB of memory for 8 processes"),
        ({"shm": 64 << 20}, "node2: /dev/shm holds 64 MiB; start its container with --shm-size=8g"),
        ({"link": Link(milliseconds=0.1, megabytes_per_second=12)}, "node2: 12 MB/s to node1; the gradients"),
        ({"link": Link(milliseconds=9, megabytes_per_second=999)}, "node2: 9.0 ms to node1 and back"),
    ],
)
def test_what_a_launch_may_regret_is_a_warning(facts: dict[str, Any], warning: str) -> None:
    hosts = [host(1), host(2, **facts)]
    (found,) = warnings_of(hosts, LAUNCH)
    assert found.startswith(warning)
    assert problems_of(hosts, LAUNCH) == []


def test_a_link_slower_than_the_others_is_named() -> None:
    rates = {2: 1200.0, 3: 1180.0, 4: 300.0}
    hosts = [host(1), *(host(n, link=Link(milliseconds=0.1, megabytes_per_second=rate)) for n, rate in rates.items())]
    assert warnings_of(hosts, LAUNCH) == ["node4: 300 MB/s to node1, others 1180; all wait for the slowest"]


def test_columns_of_the_table_are_aligned() -> None:
    hosts = [host(1), Host("a-host-of-a-long-name", 16)]
    header, *rows = table(hosts).splitlines()
    ends = header.index("slots") + len("slots")
    assert [row[:ends].split()[-1] for row in rows] == ["8", "16"]
