"""The split of a document: by its text alone, in the shares that were asked for."""

from collections import Counter

import pytest

from data_prep.splits import SplitRule
from dsllm.errors import DataError


def test_shares_come_out_as_asked():
    rule = SplitRule((0.8, 0.15, 0.05))
    found = Counter(rule.split_of(b"document %d" % i) for i in range(20_000))
    assert abs(found["train"] - 16_000) < 300 and abs(found["val"] - 3_000) < 250 and abs(found["test"] - 1_000) < 150


def test_the_split_of_a_text_is_pinned():
    # Written down once: another hash would move documents of every folder there is.
    rule = SplitRule((0.8, 0.1, 0.1))
    assert [rule.split_of(text.encode()) for text in ("a", "b", "c", "d", "e", "f", "g", "h", "naïve")] == [
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
    ]


@pytest.mark.parametrize(
    ("shares", "only"), [((1, 0, 0), "train"), ((0, 1, 0), "val"), ((0.0, 0.0, 1.0), "test")]
)  # fmt: skip
def test_a_share_of_nothing_gets_nothing(shares, only):
    assert {SplitRule(shares).split_of(b"%d" % i) for i in range(2_000)} == {only}


def test_growing_one_share_moves_no_document_between_the_others():
    small, large = SplitRule((0.8, 0.1, 0.1)), SplitRule((0.85, 0.05, 0.1))
    for i in range(2_000):
        text = b"%d" % i
        if large.split_of(text) != small.split_of(text):
            assert (small.split_of(text), large.split_of(text)) == ("val", "train")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.9, 0.1), "0.9,0.1: 2 shares, not 3"),
        ((0.8, 0.1, 0.2), "add up to 1.1, not to 1"),
        ((1.2, -0.1, -0.1), "a share lies between 0 and 1"),
        ((float("nan"), 0.5, 0.5), "a share lies between 0 and 1"),
    ],
)
def test_impossible_shares_are_an_error_that_names_the_cure(shares, message):
    with pytest.raises(DataError, match=message):
        SplitRule(shares)
