"""What embeddings are judged by: texts out of documents, and measures with known answers."""

import sys

import numpy as np
import pytest

from tests.launching import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import embedding_texts as texts
import embeddings as measures

FILE = '''
"""What a module says. It says it at some length, so that it is a sentence of ten words.
The second line goes on with a sentence of as many words.

Parameters
----------
x : int
    A number that the table of parameters explains in a sentence.

>>> this("is code. It has a sentence of more than six words.")
"""

def function():
    """A function's docstring has a sentence of more than six words."""
    return "A string that is no docstring has a sentence, too."
'''


def test_of_a_python_file_the_docstrings_are_read_and_of_other_text_all():
    assert [text[:7] for text in texts.prose(FILE)] == ["What a ", "A funct"]
    assert texts.prose("Two is a prime.") == ["Two is a prime."]


def test_sentences_are_neighbours_within_a_paragraph_of_prose():
    (row,) = texts.sentences(texts.prose(FILE)[0])
    assert row == [
        "It says it at some length, so that it is a sentence of ten words.",
        "The second line goes on with a sentence of as many words.",
    ]


def test_halves_meet_at_the_white_space_nearest_to_the_middle_and_short_texts_have_none():
    words = " ".join(f"word{number}" for number in range(100))
    first, second = texts.halves(words)
    assert f"{first} {second}" == words and abs(len(first) - len(second)) < 8
    assert sum(map(len, texts.halves(words * 3))) <= 1200
    assert texts.halves("too short") is None and texts.halves("word" * 200) is None


def test_random_partners_are_of_other_documents_and_no_sentence_is_in_two_pairs_of_neighbours():
    documents = [
        f"The number {number} is one of the many numbers. The square of {number} is found by those who look for it."
        for number in ("one", "two", "three", "one", "two", "three")
    ]
    adjacent, random = texts.sentence_pairs(documents, 10, np.random.default_rng(0))
    assert len(adjacent) == len(random) == 3
    assert [pair.first for pair in adjacent] == [pair.first for pair in random]
    assert all(pair.document != pair.other for pair in random)
    assert all(pair.document == pair.other for pair in adjacent)
    assert texts.sentence_pairs(documents[:1], 10, np.random.default_rng(0)) == ([], [])


def test_ranks_count_who_is_nearer_and_half_of_those_as_near():
    first = np.eye(3)
    second = np.array([[1.0, 0, 0], [2, 1, 0], [0, 1, 1]])
    # own cosines 1, 1, 1; the first row's rivals have 2 and 0, the second's 0 and 1 (tied), the third's 0 and 0
    assert measures.reciprocal_ranks(first, second) == pytest.approx([1 / 2, 1 / 1.5, 1])


def test_auc_and_spearman_have_their_known_values():
    counts = np.ones((5, 4), int)
    figure = measures.auc_figure(np.array([4.0, 3, 2, 1]), np.array([2.0, 0, 0, 0]), counts)
    assert figure.value == pytest.approx((4 + 4 + 3.5 + 3) / 16) and figure.low == figure.high == figure.value
    assert measures.spearman(np.array([1.0, 2, 3]), np.array([1.0, 8, 27])) == pytest.approx(1)
    assert measures.spearman(np.array([1.0, 2, 2, 3]), np.array([3.0, 2, 2, 1])) == pytest.approx(-1)


def test_intervals_widen_when_whole_documents_are_drawn():
    values = np.repeat(np.random.default_rng(1).random(10), 20)
    alone = measures.mean_figure(values, measures.weights(np.arange(200)))
    together = measures.mean_figure(values, measures.weights(np.repeat(np.arange(10), 20)))
    assert alone.value == together.value and together.low < alone.low < alone.value < alone.high < together.high
