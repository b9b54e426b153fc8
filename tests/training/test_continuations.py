"""At evaluations a model continues held-out text: the same beginnings, the same words at every ZeRO stage."""

import pytest
import torch

from dsllm.data.dataset import TokenDataset
from dsllm.errors import ConfigError
from dsllm.models.language_model import Output
from dsllm.tokenizer import load_tokenizer
from dsllm.training import continuations
from dsllm.training.continuations import Continuation, Continuations
from dsllm.training.loading import load_model
from dsllm.training.monitor import read_metrics
from tests.launching import train


def texts(run_dir):
    return [(r["step"], r["prompt"], r["text"]) for r in read_metrics(run_dir) if r["kind"] == "text"]


@pytest.fixture(scope="module")
def val(data_folder) -> TokenDataset:
    return TokenDataset(data_folder, "val", context=32)


def test_the_beginnings_are_those_of_two_validation_samples(trained_run, val):
    written = texts(trained_run)
    decode = load_tokenizer("bytes").decode
    beginnings = [decode(val.sample(index)[:8]) for index in (0, len(val) // 2)]
    assert [(step, prompt) for step, prompt, _ in written] == [
        (step, text) for step in (0, 4, 8) for text in beginnings
    ]
    assert {len(text) for *_, text in written} <= {2, 3, 4}  # four bytes each; some may be no UTF-8 alone


def test_rows_of_several_lengths_are_what_each_is_by_itself(trained_run, val):
    """Against `generate`, with its cache and its guesses; a head that is sure of itself leaves nothing to chance."""
    model, tokenizer, prompts = load_model(trained_run), load_tokenizer("bytes"), ["def f(", "x", "import numpy as"]

    def sure(ids):
        output = model(ids)
        return output._replace(logits=output.logits * 1e4)

    written = Continuations(prompts, 12, val, tokenizer, 32, 1).write(sure, torch.device("cpu"))
    assert [continuation.prompt for continuation in written] == prompts
    for prompt, continuation in zip(prompts, written, strict=True):
        ids = torch.tensor([list(prompt.encode())])
        greedy = model.generate(ids, 12, temperature=0, known=257)[0, ids.shape[1] :]
        assert continuation.text == tokenizer.decode(greedy.tolist())


def test_it_draws_the_same_each_time_it_is_asked_and_another_seed_draws_otherwise(trained_run, val):
    model, tokenizer = load_model(trained_run), load_tokenizer("bytes")
    one, other = (Continuations(None, 24, val, tokenizer, 32, seed) for seed in (1, 2))
    first = one.write(model, torch.device("cpu"))
    torch.rand(3)
    assert first == one.write(model, torch.device("cpu")) != other.write(model, torch.device("cpu"))


@pytest.mark.slow
def test_every_stage_writes_the_same_on_two_ranks(recipe, trained_run, tmp_path):
    for stage in (2, 3):
        config = f"ds_configs/zero{stage}.json"
        train(recipe, tmp_path / str(stage), ranks=2, train__ds_config=config, train__micro_batch_size=4)
        assert texts(tmp_path / str(stage)) == texts(trained_run)


def test_problems_have_no_text_to_continue_unless_prompts_are_given(val):
    class Problems:
        labelled = True

    tokenizer = load_tokenizer("bytes")
    assert Continuations(None, 8, Problems(), tokenizer, 32, 1).write(None, torch.device("cpu")) == []
    assert Continuations(None, 8, None, tokenizer, 32, 1).write(None, torch.device("cpu")) == []
    assert len(Continuations(["1 + 1 ="], 8, Problems(), tokenizer, 32, 1).rows) == 1
    assert Continuations(["x"], 0, val, tokenizer, 32, 1).write(None, torch.device("cpu")) == []


def test_a_signal_ends_it(trained_run, val):
    writer = Continuations(["x"], 4, val, load_tokenizer("bytes"), 32, 1)
    assert writer.write(load_model(trained_run), torch.device("cpu"), stop=lambda: True) == []


def test_logits_that_are_no_numbers_write_nothing_in_as_many_passes(val):
    passes = []

    def broken(ids):
        passes.append(ids.shape)
        return Output(torch.full((*ids.shape, 320), float("nan")), None)

    assert Continuations(["x", "yz"], 5, val, load_tokenizer("bytes"), 32, 1).write(broken, torch.device("cpu")) == []
    assert len(passes) == 5


def test_many_long_prompts_go_through_a_few_at_a_time(trained_run, val, monkeypatch):
    """All logits are held: memory must not follow from the number of prompts."""
    model, tokenizer, prompts = load_model(trained_run), load_tokenizer("bytes"), [f"{n} and" for n in range(7)]

    def sure(ids):
        sizes.append(len(ids))
        output = model(ids)
        return output._replace(logits=output.logits * 1e4)

    sizes: list[int] = []
    writer = Continuations(prompts, 4, val, tokenizer, 32, 1)
    together = writer.write(sure, torch.device("cpu"))
    assert set(sizes) == {7}
    sizes.clear()
    monkeypatch.setattr(continuations, "HELD", 30)
    assert writer.write(sure, torch.device("cpu")) == together and set(sizes) == {3, 1}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "holds no token; give some text"),
        ("x" * 25, "has 25 tokens, and model.context - monitor.new_tokens leaves 24"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(val, prompt, words):
    with pytest.raises(ConfigError, match=words):
        Continuations([prompt], 8, val, load_tokenizer("bytes"), 32, 1)


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_written(recipe, tmp_path):
    output = train(recipe, tmp_path / "run", expect=2, monitor__prompts="['" + "long " * 20 + "']")
    assert "monitor.prompts: " in output and "shorten it, or take fewer monitor.new_tokens" in output
    assert "Traceback" not in output and not (tmp_path / "run").exists()


def test_no_character_of_it_is_taken_for_markup():
    shown = Continuation("# a\n```", "<b>\n**x**").markdown()
    assert shown == "**prompt**\n\n    # a\n    ```\n\n**continuation**\n\n    <b>\n    **x**"
