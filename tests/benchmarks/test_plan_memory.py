"""Planned memory is within a tenth of what runs of this repository were measured to take."""

import sys

import pytest

from tests.launching import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import plan_memory


@pytest.mark.parametrize("where", ["gpu_rows", "cpu_rows"])
def test_a_plan_is_within_a_tenth_of_what_was_measured(where):
    rows = getattr(plan_memory, where)()
    assert len(rows) > 8
    for name, planned, measured in rows:
        assert planned == pytest.approx(measured, rel=0.1), name
