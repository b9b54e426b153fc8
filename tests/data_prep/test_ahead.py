"""Reading ahead: one item early, in order, errors in their place."""

from itertools import count
from threading import Event, Thread

import pytest

from data_prep.ahead import one_ahead
from dsllm.errors import DataError


def test_items_come_in_order_and_nothing_after_them():
    assert list(one_ahead(range(100))) == list(range(100))
    assert list(one_ahead([])) == []
    assert list(one_ahead([None, None])) == [None, None]


def test_the_next_item_is_made_while_the_last_is_used_and_no_other():
    asked, second = [], Event()

    def items():
        for number in count():
            asked.append(number)
            if number == 1:
                second.set()
            yield number

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert second.wait(10)
    ahead.close()
    assert asked == [0, 1]


def test_an_error_comes_after_all_items_before_it():
    def items():
        yield 1
        yield 2
        raise DataError("broken off")

    ahead = one_ahead(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(DataError, match="broken off"):
        next(ahead)


def test_closing_does_not_wait_for_an_item_that_hangs():
    hangs = Event()

    def items():
        yield 1
        hangs.wait()
        yield 2

    def use():
        ahead = one_ahead(items())
        assert next(ahead) == 1
        ahead.close()

    user = Thread(target=use, daemon=True)
    user.start()
    user.join(10)
    assert not user.is_alive()
    hangs.set()
