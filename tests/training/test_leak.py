"""The leak alarm: too good a loss is looked into, on the live model, in training and evaluation of every model."""

import json

import numpy as np
import pytest
import torch

from dsllm.config import ModelConfig
from dsllm.data.batches import evaluation_batches
from dsllm.models.gpt2 import GPT2, GPT2Config
from dsllm.training.evaluation import evaluate, phase_losses
from dsllm.training.leak import LeakAlarm, look_for_leaks, places
from dsllm.training.monitor import read_metrics
from tests.launching import REPOSITORY, python, train
from tests.training.leaky import Echo, Peeking

VOCABULARY, CPU = 50, torch.device("cpu")


class Source:
    """Samples as a split gives them."""

    def __init__(self, tokens: np.ndarray):
        self.tokens, self.context = tokens, tokens.shape[1] - 1

    def __len__(self):
        return len(self.tokens)

    labelled = False

    def sample(self, i):
        return self.tokens[i]

    def document_ids(self, i):
        return np.arange(self.context) // 7


def source(context=40, samples=4):
    return Source(np.random.default_rng(0).integers(0, VOCABULARY, (samples, context + 1)))


def model_of(kind, context=40):
    torch.manual_seed(0)
    return kind(ModelConfig(context=context, vocab_size=VOCABULARY)).eval()


def small_gpt2(context=40):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, context=context, vocab_size=VOCABULARY)
    return GPT2(config).eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("context", [2, 3, 40, 200])
def test_a_model_that_peeks_is_found_out_at_every_place(context, masked):
    positions, leaks = look_for_leaks(model_of(Peeking, context), source(context), VOCABULARY, CPU, masked)
    assert positions == leaks == places(context) != []


@pytest.mark.parametrize("context", [1, 2, 40])
def test_a_causal_model_is_not_accused(context):
    for model in (small_gpt2(context), model_of(Echo, context)):
        assert look_for_leaks(model, source(context), VOCABULARY, CPU)[1] == []


def test_a_leak_that_is_rare_along_the_text_is_found():
    class Sometimes(Echo):
        """Only the last token of every 16 peeks, as a window delivered too early does."""

        def hidden(self, input_ids, document_ids=None, cache=None):
            after = torch.cat((input_ids[:, 1:], input_ids[:, -1:]), dim=1)
            last = torch.arange(input_ids.shape[1]) % 16 == 15
            return self.wte(after.where(last, input_ids))

    assert look_for_leaks(model_of(Sometimes), source(), VOCABULARY, CPU)[1] == [16, 32]


def test_the_alarm_is_silent_above_its_bounds():
    assert LeakAlarm(1_000_000, VOCABULARY, CPU).after(model_of(Peeking), source(), "val", 0.91) is None
    assert LeakAlarm(50_000_000, VOCABULARY, CPU).after(model_of(Peeking), source(), "val", 0.1) is None


def test_each_answer_is_given_once():
    alarm = LeakAlarm(1_000_000, VOCABULARY, CPU)
    first = alarm.after(model_of(Echo), source(), "val", 0.5)
    assert first is not None and "no leak was found" in first and "0.500 bits per byte on val" in first
    assert alarm.after(model_of(Echo), source(), "val", 0.4) is None
    other = alarm.after(model_of(Peeking), source(), "test", 0.4)
    assert other is not None and "SEES THE FUTURE" in other


def test_losses_by_phase_add_up_to_the_loss():
    samples, model = source(40, samples=5), small_gpt2()

    def batches():
        options = {"samples": None, "micro_batch_size": 2, "rank": 0, "world_size": 1}
        return evaluation_batches(samples, **options)

    losses, counts = phase_losses(model, batches(), 16, CPU)
    assert counts.tolist() == [15] * 8 + [10] * 8
    whole = evaluate(model, batches(), np.ones(VOCABULARY, np.int64), CPU)
    assert whole is not None and (losses * counts).sum() / counts.sum() == pytest.approx(whole.loss, rel=1e-6)
    one_by_one, _ = phase_losses(model, batches(), 64, CPU)
    assert np.isnan(one_by_one[40:]).all() and not np.isnan(one_by_one[:40]).any()


@pytest.mark.slow
def test_training_and_evaluation_raise_the_alarm(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    run_dir = tmp_path / "peeking"
    options = {"train__steps": 2, "train__ds_config": "ds_configs/zero3.json", "train__lr": 1e-6}
    said = train(recipe, run_dir, ranks=2, model__name="tests.training.leaky:Peeking", **options)
    assert said.count("THE MODEL SEES THE FUTURE") == 1, said
    events = [record for record in read_metrics(run_dir) if record.get("event") == "alarm"]
    assert len(events) == 1 and "leak alarm" in events[0]["words"]

    said = python("launch/evaluate.py", run_dir, "--samples", 8, "--period", 4)
    assert "THE MODEL SEES THE FUTURE" in said and "loss by phase" in said
    assert len(json.loads(said.splitlines()[-1])["loss_by_phase"]) == 4
    wrong = python("launch/evaluate.py", run_dir, "--period", 10**11, expect=2)
    assert "error: --period 100000000000: longer than the context" in wrong and "Traceback" not in wrong
