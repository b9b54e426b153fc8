from collections.abc import Iterator

import pytest

from tests.multihost.hosts import Cluster, hosts, missing_requirement


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts, node1 and node2, that share the machine's files."""
    if reason := missing_requirement():
        pytest.skip(reason)
    with hosts(2, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
