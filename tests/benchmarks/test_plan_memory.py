"""Planned memory is within a tenth of what was measured: of runs of this repository, and of others' as published."""

import sys

import pytest

from tests.launching import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import plan_memory


@pytest.mark.parametrize(("where", "runs"), [("gpu_rows", 9), ("cpu_rows", 13), ("published_rows", 4)])
def test_a_plan_is_within_a_tenth_of_what_was_measured(where, runs):
    rows = getattr(plan_memory, where)()
    assert len(rows) == runs
    for name, planned, measured in rows:
        assert planned == pytest.approx(measured, rel=0.1), name
