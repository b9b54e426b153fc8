"""lm-eval, which others judge models by, gives an exported model the accuracy that we give it.

Its command is run by tests/test_docs.py.
"""

import json
import math
import sys
from pathlib import Path

import pytest

from dsllm.cloze import Item, by_length, encoded, items_of, score
from dsllm.errors import DataError
from dsllm.exchange.export import export
from dsllm.tokenizer import load_tokenizer
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.loading import load_model, load_tokenizer_of
from tests.forked import forked
from tests.launching import REPOSITORY, run, train

FEW = {"count": 60, "words": 6}


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of a written task."""
    folder = tmp_path_factory.mktemp("chains") / "assignments"
    command = [sys.executable, "-m", "data_prep", "reasoning", "variable_assignment", folder, "--lengths", "1-2"]
    run([*command, "--documents", "2000", "--held_out", "40"])
    return folder


def judged(folder: Path, task: str, data: Path, **more: object) -> dict[str, float]:
    """What lm-eval says."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    ours = {"include_path": str(REPOSITORY / "launch" / "lm_eval"), "include_defaults": False}  # thousands of files
    tasks = TaskManager(**ours, metadata={"data": str(data), **FEW})
    options = {"device": "cpu", "batch_size": 8, "bootstrap_iters": 0}
    model = {"pretrained": str(folder), **more}
    found = simple_evaluate("hf", model_args=model, tasks=[task], task_manager=tasks, **options)
    results: dict[str, float] = found["results"][task]
    return results


LEVELS = "{name: conv_attention, strides: [4], widths: [32, 48], encoder: [1], decoder: [1], n_head: 2, context: 64}"
MODELS = {
    "gpt2": {"model__context": 64},
    "gpt2, learned positions": {"model__context": 64, "model__positions": "learned"},
    "convolution attention": {"model": LEVELS},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_its_accuracy_on_held_out_words_is_ours(name, recipe, data_folder, tmp_path):
    options = {"train__steps": 60, "train__eval_every": 0, "train__test_samples": 0, **MODELS[name]}
    train(recipe, tmp_path / "run", **options)
    checkpoint = find_checkpoint(tmp_path / "run")
    export(checkpoint, tmp_path / "out")
    theirs = judged(tmp_path / "out", "dsllm_cloze", data_folder, trust_remote_code="model" in options)
    items = items_of(data_folder, **FEW)
    ours = score(load_model(tmp_path / "run"), load_tokenizer_of(checkpoint), items)
    assert ours.items == len(items) > 5
    assert theirs["acc,none"] == pytest.approx(ours.accuracy, abs=1e-9)
    assert math.log(theirs["perplexity,none"]) == pytest.approx(ours.nats, rel=1e-5)


@pytest.mark.slow
def test_its_accuracy_on_problems_is_ours_and_that_of_the_evaluation(chains, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
run_dir: {tmp_path / "run"}
model: {{name: gpt2, n_layer: 2, n_head: 2, n_embd: 64, context: 64}}
data: {{path: {chains}, mask_documents: true}}
train: {{steps: 150, micro_batch_size: 32, global_batch_size: 32, lr: 5.0e-3, precision: fp32, eval_every: 0,
        test_samples: 0}}
monitor: {{tensorboard: false}}
""")
    train(recipe, tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run")
    export(checkpoint, tmp_path / "out")
    theirs = judged(tmp_path / "out", "dsllm_reasoning", chains)
    model, tokenizer = load_model(tmp_path / "run"), load_tokenizer_of(checkpoint)
    ours = score(model, tokenizer, items_of(chains, count=FEW["count"]))
    assert 0 < ours.accuracy < 1 and theirs["acc,none"] == pytest.approx(ours.accuracy, abs=1e-9)

    everything = items_of(chains, count=10**6)
    told = forked(["launch/evaluate.py", tmp_path / "run", "--reasoning", "--cloze", 10**6])
    facts = json.loads(told.splitlines()[-1])
    assert facts["cloze"]["items"] == len(everything) == sum(facts["reasoning"]["test"]["asked"].values())
    for length, of in by_length(everything):
        assert facts["reasoning"]["test"]["accuracy"][str(length)] == score(model, tokenizer, of).accuracy


def test_items_are_held_out_words_behind_so_many_others(data_folder):
    items = items_of(data_folder, count=5, words=12)
    assert len(items) == 5
    for item in items:
        assert len(item.context.split()) >= 12 and item.target[0] == " " and item.target[1:].isalpha()


def test_a_target_is_cut_where_the_context_ends():
    tokenizer = load_tokenizer("gpt2")
    context, target = encoded(tokenizer, Item("The group is abelian if its elements ", "commute"))
    assert tokenizer.decode(target) == " commute" and tokenizer.decode(context).endswith("elements")


def test_what_has_no_such_texts_is_said(data_folder, tmp_path):
    with pytest.raises(DataError, match="no document of split test has 1000000 words"):
        items_of(data_folder, words=10**6)
    command = [sys.executable, "-m", "data_prep", "reasoning", "perm_chain", tmp_path / "perm", "--lengths", "1-3"]
    run([*command, "--documents", "200", "--held_out", "5"])
    with pytest.raises(DataError, match="words of their own, which no text says; take a written task"):
        items_of(tmp_path / "perm")
