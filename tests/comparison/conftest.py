"""Records of runs that the tests of comparisons share."""

from pathlib import Path

import pytest

from dsllm.comparison.record import RunRecord
from tests.launching import train


@pytest.fixture(scope="session")
def second_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `trained_run`, with another seed."""
    run_dir = tmp_path_factory.mktemp("runs") / "other_seed"
    train(recipe, run_dir, ranks=1, train__ds_config="ds_configs/zero0.json", train__seed=7)
    return run_dir


@pytest.fixture(scope="session")
def record(trained_run: Path) -> RunRecord:
    return RunRecord.read(trained_run)
