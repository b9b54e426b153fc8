"""The rate of an arm is looked for until it is inside of those tried, and the report says what each one gave."""

import math

import pytest

from dsllm.comparison.rates import best_rate, next_rate, rates_table
from dsllm.errors import UserError

INF = math.inf


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({0.1: 2.0}, None),
        ({0.1: 2.0, 0.2: 1.0}, 0.4),
        ({0.1: 1.0, 0.2: 2.0}, 0.05),
        ({0.1: 2.0, 0.2: 1.0, 0.4: 1.5}, None),
        ({0.4: 1.5, 0.2: 1.0, 0.1: 2.0}, None),  # in whatever order they were tried
        ({0.1: 2.0, 0.2: 1.0, 0.4: INF}, None),
        ({0.1: 1.0, 0.3: 2.0, 0.6: 3.0}, 0.03333),
        ({0.1: 2.0, 0.3: 2.0}, 0.03333),
        ({0.1: INF, 0.2: INF}, None),
    ],
)
def test_beyond_an_end_the_next_rate_by_the_ratio_there(losses, rate):
    assert next_rate(losses) == rate


def test_the_best_rate_or_an_error_if_there_is_none():
    assert best_rate("a", {0.1: 2.0, 0.2: 1.0, 0.4: INF}) == 0.2
    with pytest.raises(UserError, match="a: diverged at every rate; try lower ones"):
        best_rate("a", {0.1: INF})


def test_the_table_has_a_column_for_each_rate_and_marks_the_best():
    table = rates_table({"a": {0.1: 2.0, 0.2: 1.0, 0.4: INF}, "b": {0.05: 3.0, 0.1: 2.5, 0.2: 2.75}})
    assert table.rows == [
        ["arm", "0.05", "0.1", "0.2", "0.4"],
        ["a", "", "2.0000", "1.0000 *", "diverged"],
        ["b", "3.0000", "2.5000 *", "2.7500", ""],
    ]
