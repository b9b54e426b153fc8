"""A host, its network, a process or the launcher is lost while two hosts train: all ends, names it, and goes on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.host_faults import FAULTS, Fault, Run, write_recipe
from tests.forked import forked
from tests.multihost.hosts import Cluster, hosts, missing_requirement

pytestmark = [pytest.mark.multihost, pytest.mark.slow]


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


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_all_ends_and_names_what_is_lost_and_the_same_command_goes_on(
    fault: Fault, cluster: Cluster, recipe: Path, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    job = Run(recipe, tmp_path / "run")
    code, seconds, output = job.disturbed(cluster, fault.inject)
    assert code not in (0, 2) and fault.says in output and "Traceback" not in output, output
    assert seconds < fault.within, output
    job.goes_on(cluster, fault.hosts)
    assert job.losses() == pytest.approx(undisturbed, rel=1e-4)
