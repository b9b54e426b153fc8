"""Every label by brute force: a problem's words are read again, one by one, by code that knows the rules only."""

import re
from itertools import pairwise

import numpy as np
import pytest

from data_prep.reasoning import TASKS
from data_prep.reasoning.task import Problems, Task, function_table
from dsllm.data.batches import NO_TARGET

LENGTHS = {
    "perm_chain": 24,
    "vars_chain": 20,
    "pointer_chase": 12,
    "p_hop": 9,
    "variable_assignment": 12,
    "igsm_lite": 20,
}


def asked(task: Task, length: int, count: int = 40, seed: int = 0) -> tuple[Problems, list[list[str]]]:
    """Problems, and the words of each."""
    problems = task.generate(length, count, np.random.default_rng(seed))
    return problems, [[task.words[token] for token in row] for row in problems.tokens]


def told(task: Task, problems: Problems, row: int) -> dict[int, tuple[str, int]]:
    """Position, and what is to be said there at which depth."""
    labels, depths = problems.labels[row], problems.depths[row]
    return {int(t): (task.words[labels[t]], int(depths[t])) for t in np.flatnonzero(labels != NO_TARGET)}


def by_perm_chain(task, words, length):
    table = function_table(task.functions, task.values, task.table_seed)
    state, found = int(words[0]), {}
    for t, word in enumerate(words[1:], 1):
        state = table[int(word[1:])][state]
        found[t] = (str(state), t)
    return found


def by_vars_chain(task, words, length):
    table = function_table(task.functions, task.values, task.table_seed)
    known, found = {}, {}
    for t in range(0, len(words), 3):
        name, how, of = words[t : t + 3]
        assert name not in known
        if how == "=":
            known[name] = (int(of), 0)
        else:
            value, depth = known[of]
            known[name] = (int(table[int(how[1:])][value]), depth + 1)
            found[t + 2] = (str(known[name][0]), depth + 1)
    assert sorted(depth for _, depth in found.values()) == sorted([*range(1, length + 1)] * task.chains)
    return found


def by_pointer_chase(task, words, length):
    n = 2 * task.nodes
    follows = dict(zip(words[:n:2], words[1:n:2], strict=True))
    assert len(follows) == task.nodes and words[n] == "?" and words[n + 2 :] == ["."] * length
    found, here, met = {}, words[n + 1], {words[n + 1]}
    for t in range(length):
        here = follows[here]
        met.add(here)
        found[n + 2 + t] = (here, t + 1)
    assert len(met) == length + 1
    return found


def by_p_hop(task, words, length):
    assert words[0] == f"p{length}"
    v, found = words[1:], {}

    def find(i):
        return max((j for j in range(1, i + 1) if v[j - 1] == v[i]), default=None)

    assert all(a != b for a, b in pairwise(v))
    for i in range(len(v)):
        places = [i]
        while len(places) <= length and places[-1] is not None:
            places.append(find(places[-1]))
        if places[-1] is not None:
            assert sorted(set(places), reverse=True) == places  # every hop goes back
            found[i + 1] = (v[places[-1]], length)
    return found


def answer_of(text, answer, length):
    at = len(text) - len(answer) - 1
    return {at + i: (character, length * (i == len(answer) - 1)) for i, character in enumerate(answer)}


def by_variable_assignment(task, words, length):
    text = "".join(words)
    *statements, question = text.split(";")
    known, copies = {}, {}
    for statement in statements:
        name, value = statement.split("=")
        known[name] = known.get(value, value)
        copies[name] = copies[value] + 1 if value in copies else 0
    name = question[1]
    assert copies[name] == length == max(copies.values()) and len(set(known.values())) == task.chains
    assert question == f"?{name}{known[name]}"
    return answer_of(text, known[name], length)


def by_igsm_lite(task, words, length):
    text = "".join(words)
    *statements, question = text.split(";")
    how = dict(statement.split("=") for statement in statements)
    assert len(how) == len(statements) == length + task.idle
    needed = set()

    def value(name):
        if name.isdigit():
            return int(name)
        needed.add(name)
        left, operator, right = re.fullmatch(r"(.)([-+*])(.)", how[name]).groups()
        return eval(f"{value(left)} {operator} {value(right)}") % 7

    answer = str(value(question[1]))
    assert len(needed) == length and question == f"?{question[1]}{answer}"
    return answer_of(text, answer, length)


def by_addition(task, words, length):
    text = "".join(words)
    sum_of, answer = text.split("=")
    operands = [int(number) for number in sum_of.split("+")]
    assert len(operands) == length and all(100 <= number <= 999 for number in operands)
    assert int(answer) == sum(operands) and len(answer) == len(str(999 * length))
    return answer_of(text, answer, length)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_every_label_is_what_the_rules_give(name, length):
    task = TASKS[name]()
    problems, texts = asked(task, length)
    for row, words in enumerate(texts):
        assert told(task, problems, row) == globals()[f"by_{name}"](task, words, length)
    assert problems.depths.max() == length


def test_compact_definitions_say_the_same_in_fewer_tokens():
    task = TASKS["vars_chain"](compact=True)
    problems, texts = asked(task, 7)
    for row, words in enumerate(texts):
        assert len(words) == 2 * (1 + 2 * 7)
        spelled, last = [], {}  # by the place of a word, that of its last in three-token definitions
        for t, word in enumerate(words):
            spelled += re.fullmatch(r"(x\d+)(=)(\d+)|(f\d+)\((x\d+)\)|(x\d+)", word).groups()
            spelled = [part for part in spelled if part is not None]
            last[t] = len(spelled) - 1
        found = {last[t]: answer for t, answer in told(task, problems, row).items()}
        assert found == by_vars_chain(task, spelled, 7)


@pytest.mark.parametrize("name", LENGTHS)
def test_so_it_is_for_long_chains(name):
    task = TASKS[name]()
    problems, texts = asked(task, LENGTHS[name])
    for row, words in enumerate(texts):
        assert told(task, problems, row) == globals()[f"by_{name}"](task, words, LENGTHS[name])


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_makes_the_same_problems_and_another_makes_others(name):
    task = TASKS[name]()
    first, again, other = (task.generate(3, 50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first.tokens != other.tokens).any()


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"addition"}))
def test_who_guesses_is_right_as_often_as_chance_says(name):
    """No answer is likelier than another."""
    task = TASKS[name]()
    problems = task.generate(4, 4000, np.random.default_rng(0))
    last = [np.flatnonzero(depths == 4)[-1] for depths in problems.depths if (depths == 4).any()]
    labels = problems.labels[[i for i, depths in enumerate(problems.depths) if (depths == 4).any()], last]
    share = np.bincount(labels).max() / len(labels)
    assert share < (0.14 if name == "variable_assignment" else 1.25 * task.chance(4))


@pytest.mark.parametrize("length", [1, 8, 24])
def test_who_copies_the_letter_under_the_cursor_is_never_right_after_one_hop_and_by_chance_after_more(length):
    task = TASKS["p_hop"]()
    problems = task.generate(length, 200, np.random.default_rng(0))
    asked = problems.depths > 0
    right = (problems.labels == problems.tokens)[asked].mean()
    assert right == 0 if length == 1 else right < 1.1 * task.chance(length)


def test_the_likeliest_sum_is_as_likely_as_chance_says():
    task = TASKS["addition"]()
    one = np.full(900, 1 / 900)
    sums = one
    for length in range(1, 7):
        assert task.chance(length) == pytest.approx(sums.max(), rel=0.07)
        sums = np.convolve(sums, one)


def test_an_igsm_answer_does_not_follow_from_its_first_operation():
    """The digit that the chain begins with is no hint at its end."""
    task = TASKS["igsm_lite"]()
    rng = np.random.default_rng(0)
    answers = np.array([task.words.index(str(i)) for i in range(7)])
    problems = task.generate(6, 4000, rng)
    given = problems.labels.max(1)
    assert set(given) == set(answers.tolist())
    counts = np.bincount(given, minlength=7)[answers]
    assert counts.min() > 0.8 * 4000 / 7


def test_tables_hold_different_permutations_as_long_as_there_are_any():
    table = function_table(24, 4, seed=3)
    assert len({tuple(row) for row in table.tolist()}) == 24
    assert (np.sort(table, axis=1) == np.arange(4)).all()
    assert function_table(10, 2, seed=0).shape == (10, 2)
    assert (function_table(8, 5, 1) != function_table(8, 5, 2)).any()
