"""A host, its network, a process or the launcher is lost while two hosts train: all ends, names it, and goes on."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dsllm.training.monitor import read_metrics
from tests.faults.host_faults import FAULTS, Fault, Run, wait, write_recipe
from tests.forked import forked
from tests.multihost.hosts import REPOSITORY, Cluster, hosts, missing_requirement

pytestmark = [pytest.mark.multihost, pytest.mark.slow(seconds=65)]

CUT, POWER = (fault for fault in FAULTS if fault.hosts == 1)
RUNS = [[*(fault for fault in FAULTS if fault.hosts == 2), CUT], [POWER]]
"""What happens to each, one after the other; what leaves one host comes last."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two hosts of this test's own, for it breaks them."""
    if reason := missing_requirement():
        pytest.skip(reason)
    with hosts(2, tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by step of the same run in one process that nothing happens to."""
    job = Run(recipe, tmp_path_factory.mktemp("undisturbed"))
    forked(job.arguments)
    return job.losses()


@pytest.mark.parametrize("faults", RUNS, ids=lambda faults: ", ".join(fault.name for fault in faults))
def test_all_ends_and_names_what_is_lost_and_the_same_command_goes_on(
    faults: list[Fault], cluster: Cluster, recipe: Path, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    job = Run(recipe, tmp_path / "run")
    for fault in faults:
        code, seconds, output = job.disturbed(cluster, fault.inject)
        assert code not in (0, 2) and fault.says in output and "Traceback" not in output, f"{fault.name}:\n{output}"
        assert seconds < fault.within, f"{fault.name}:\n{output}"
    job.goes_on(cluster, faults[-1].hosts)
    assert job.losses() == pytest.approx(undisturbed, rel=1e-4)


def test_a_host_that_is_cut_off_while_the_ranks_meet_anew_ends_all(
    cluster: Cluster, growing: Path, tmp_path: Path
) -> None:
    options = ["--config", growing, "--run_dir", tmp_path / "run", "--train.meet_within=6"]
    master = cluster.hosts["node1"].address
    command = ["deepspeed", "--hostfile", cluster.hostfile, "--master_addr", master]
    killing = REPOSITORY / "tests" / "training" / "killing.py"
    process = cluster.start([*command, killing, *options, "--end=SIGSTOP@1@the process begins anew"])
    wait(lambda: stopped(cluster, "node2") != [], 60)
    cluster.cut("node2")
    for rank in stopped(cluster, "node2"):
        rank.resume()
    output, _ = process.communicate(timeout=60)
    wait(lambda: not cluster.jobs(), 60)
    assert process.returncode not in (0, 2) and "Traceback" not in output, output
    assert "error: rank 1 has not come to rank 0 on node1" in output
    cluster.mend("node2")
    done = cluster.run([*command, "launch/train.py", *options])
    assert done.returncode == 0, done.stdout
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"] == [1, 2, 3, 4]


def stopped(cluster: Cluster, host: str) -> list[psutil.Process]:
    found = []
    for process in cluster.hosts[host].processes():
        with suppress(psutil.NoSuchProcess):
            found += [process] if process.status() == psutil.STATUS_STOPPED else []
    return found
