"""Runs that differ by their seed are an arm; losses that are not of one thing are refused."""

import re

import pytest

from dsllm.comparison.arms import arms_of, of_one_data
from dsllm.comparison.record import RunRecord
from dsllm.comparison.report import table
from dsllm.errors import UserError
from tests.comparison.records import changed, of_another_arm


def test_runs_of_one_configuration_are_an_arm_with_mean_and_deviation(record, second_run):
    (arm,) = arms_of([record, RunRecord.read(second_run)])
    losses = [run.test_loss for run in arm.runs]
    assert len(losses) == 2 and losses[0] != losses[1]
    assert arm.mean(lambda run: run.test_loss) == pytest.approx(sum(losses) / 2)
    assert arm.spread(lambda run: run.test_loss) == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    cell = dict(table([arm]))["test loss, nats per target"]
    assert re.fullmatch(r"\d\.\d{4} ± \d\.\d{4}", cell)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"data": "0" * 64}, "trained and scored on other data"),
        ({"tokenizer": "0" * 64, "tokenizer_name": "gpt2"}, r"another tokenizer \(bytes and gpt2\)"),
        ({"objective": "labels of problems"}, r"another objective \(next token and labels of problems\)"),
        ({"context": 64}, r"samples of another length \(32 and 64\)"),
        ({"tokens": 12345}, r"other tokens scored \(224 and 12,345\)"),
        ({"validation_tokens": 7}, r"other validation samples \(288 and 7\)"),
    ],
)
def test_losses_that_do_not_belong_into_one_column_are_refused_by_name(record, update, words):
    other = of_another_arm(record, scored=record.scored.model_copy(update=update))
    with pytest.raises(UserError, match=words) as refused:
        arms_of([record, other])
    assert record.name in str(refused.value) and "other" in str(refused.value)


def with_data(record: RunRecord, name: str, seed: int, data: str) -> RunRecord:
    return of_another_arm(record, name, seed=seed).of_data(data)


BY_SEED = [("a", 1, "x"), ("a", 2, "y"), ("b", 1, "x"), ("b", 2, "y")]


def test_data_that_go_by_the_seed_are_one_if_that_is_said(record):
    runs = [with_data(record, *run) for run in BY_SEED]
    assert [(arm.name, len(arm.runs)) for arm in arms_of(of_one_data(runs))] == [("a", 2), ("b", 2)]
    with pytest.raises(UserError, match=r"other data \(x and y\).*--data_by_seed"):
        arms_of(runs)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([("a", 1, "x"), ("b", 2, "y")], "a and b: no seed in common"),
        ([*BY_SEED[:3], ("b", 2, "z")], r"a and b: other data with the same seed, 2 \(y and z\); prepare"),
    ],
)
def test_data_that_go_by_the_seed_must_be_alike_for_all_arms(runs, words, record):
    with pytest.raises(UserError, match=words):
        of_one_data([with_data(record, *run) for run in runs])


@pytest.mark.parametrize("update", [{"tokenizer": "0" * 64}, {"objective": "labels of problems"}, {"tokens": 12345}])
def test_every_seed_is_looked_at_not_the_first_alone(update, record):
    runs = [with_data(record, *run) for run in BY_SEED]
    for other in (1, 3):  # the second seed of both
        runs[other] = changed(runs[other], scored=runs[other].scored.model_copy(update=update))
    with pytest.raises(UserError, match="a and a: "):
        arms_of(of_one_data(runs))


def test_the_same_run_twice_is_refused(record):
    with pytest.raises(UserError, match="one_rank, one_rank: one configuration with seed 1337, more than once"):
        arms_of([record, record])


@pytest.mark.parametrize(
    ("names", "arm"),
    [
        (["gpt2_seed1", "gpt2_seed2"], "gpt2"),
        (["gpt2_11", "gpt2_12"], "gpt2"),
        (["runs1", "runs2"], "runs"),
        (["bias-s1", "bias-s2"], "bias"),
        (["a", "b"], "a"),
        (["seed1", "seed2"], "around"),
        (["1"], "around"),
        (["only_3"], "only_3"),
    ],
)
def test_an_arm_is_called_what_its_runs_have_in_common(names, arm, record):
    runs = [changed(record, name=name, group="around", seed=9 - i) for i, name in enumerate(names)]
    assert arms_of(runs)[0].name == arm
