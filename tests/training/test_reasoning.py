"""Accuracy by chain length: what counts as right, what is told of it, and a run that learns short chains."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml

from dsllm.comparison.record import RunRecord
from dsllm.data.batches import evaluation_batches
from dsllm.data.problems import ProblemDataset
from dsllm.models import build_model
from dsllm.models.gpt2 import GPT2Config
from dsllm.training.evaluation import evaluate
from dsllm.training.monitor import read_metrics
from dsllm.training.reasoning import DEPTHS, ChainAccuracy, count_answers
from tests.launching import python, run, train


def counted(said, labels, depths):
    right, asked = count_answers(np.array(said), np.array(labels), np.array(depths))
    return {int(k): (int(right[k]), int(asked[k])) for k in np.flatnonzero(asked)}


def test_each_answer_counts_by_the_length_of_its_chain():
    labels = [[-100, 1, 3, 0], [-100, 2, 2, 2]]
    depths = [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert counted([[9, 1, 3, 4], [9, 2, 0, 2]], labels, depths) == {1: (2, 2), 2: (1, 2), 3: (1, 2)}


def test_an_answer_of_several_tokens_is_right_as_a_whole():
    labels, depths = (
        [[-100, 0, 5, 8], [4, 4, -100, -100], [-100, 7, 1, -100]],
        [[0, 0, 0, 4], [0, 4, 0, 0], [0, 2, 4, 0]],
    )
    assert counted([[0, 0, 5, 8], [4, 4, 0, 0], [0, 7, 1, 9]], labels, depths) == {2: (1, 1), 4: (3, 3)}
    assert counted([[0, 1, 5, 8], [4, 4, 0, 0], [0, 0, 1, 9]], labels, depths) == {2: (0, 1), 4: (2, 3)}
    assert counted([[0, 0, 5, 8], [3, 4, 0, 0], [0, 7, 0, 9]], labels, depths) == {2: (1, 1), 4: (1, 3)}


def chains(**shares):
    return ChainAccuracy({int(k[1:]): round(100 * v) for k, v in shares.items()}, {int(k[1:]): 100 for k in shares})


def test_h90_is_the_longest_chain_up_to_which_all_hold():
    assert chains(k1=1.0, k2=0.95, k3=0.9, k4=0.89, k5=0.99).h90 == 3
    assert chains(k1=0.5, k2=1.0).h90 == 0
    assert chains(k4=0.9, k8=0.9).h90 == 8
    assert chains(k1=1.0, k2=0.5).area == 0.75


def test_wilsons_interval_is_that_of_the_literature():
    low, high = ChainAccuracy({1: 81}, {1: 263}).interval(1)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert ChainAccuracy({1: 0}, {1: 20}).interval(1) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert ChainAccuracy({1: 20}, {1: 20}).interval(1)[1] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("problems") / "perm"
    task = ["--task", "perm_chain", "--lengths", "1-4", "--beyond", "5-6", "--options", "values=3,functions=3"]
    run([sys.executable, "-m", "data_prep", "reasoning", *task, "--documents", 4000, "--held_out", 60, "--out", out])
    return out


def test_an_oracle_is_always_right_and_its_loss_is_that_of_the_labels(folder):
    data = ProblemDataset(folder, "test", 8)
    size = data.tokenizer.size
    known = {tuple(data.sample(i)[:-1].tolist()): data.labels(i)[0] for i in range(len(data))}

    class Oracle:
        def __call__(self, ids, document_ids=None):
            rows = [known.get(tuple(row.tolist()), np.zeros(8, np.int64)) for row in ids]
            wanted = torch.from_numpy(np.stack(rows)).clamp(min=0)
            return type("Output", (), {"logits": 3.0 * torch.nn.functional.one_hot(wanted, size)})

    batches = evaluation_batches(data, samples=None, micro_batch_size=16, rank=0, world_size=1)
    result = evaluate(Oracle(), batches, np.ones(size, np.int64), torch.device("cpu"))
    assert result.chains.h90 == 4 and result.chains.area == 1.0
    assert (
        result.tokens
        == sum((data.labels(i)[0] != -100).sum() for i in range(len(data)))
        == sum(result.chains.asked.values())
    )
    assert result.loss == pytest.approx(-torch.log_softmax(torch.tensor([3.0] + [0.0] * (size - 1)), 0)[0].item())


def test_ranks_add_their_counts_up():
    counts = np.zeros((2, DEPTHS))
    counts[:, 3] = 2, 4
    assert ChainAccuracy.of(2 * counts) == ChainAccuracy({3: 4}, {3: 8})


def written(path, model, data, **train_section):
    values = {
        "run_dir": "runs/unnamed",
        "model": model,
        "data": data,
        "train": {"lr": 3.0e-3, "precision": "fp32", **train_section},
        "monitor": {"log_every": 1},
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_a_run_on_problems_learns_short_chains_and_tells_how_long_they_may_be(folder, tmp_path):
    model = {"n_layer": 2, "n_head": 4, "n_embd": 32, "context": 5}
    recipe = written(
        tmp_path / "perm.yaml", model, {"path": str(folder)},
        steps=240, micro_batch_size=64, global_batch_size=64, beta2=0.98, eval_every=240, eval_samples=240,
        checkpoint_every=0,
    )  # fmt: skip
    out = train(recipe, tmp_path / "run")
    assert "H90" in out and "leak alarm" not in out
    first, last = (r for r in read_metrics(tmp_path / "run") if r["kind"] == "eval" and r["split"] == "val")
    assert last["loss"] < 0.9 < math.log(3) < first["loss"]  # of three states
    assert last["accuracy"]["1"] > 0.6 > first["accuracy"]["1"]
    assert 0 < last["area"] <= 1 and set(last["asked"]) == {"1", "2", "3", "4"}

    record = RunRecord.read(tmp_path / "run")
    assert record.chance == pytest.approx(dict.fromkeys("123456", 1 / 3))
    said = python("launch/evaluate.py", tmp_path / "run", "--reasoning")
    facts = json.loads(said.splitlines()[-1])
    assert set(facts["reasoning"]["beyond"]["accuracy"]) == {"1", "2", "3", "4", "5", "6"}
    assert facts["chance"]["6"] == pytest.approx(1 / 3)
    assert "test: H90" in said and "beyond: mean accuracy over chains of " in said and "0.333" in said
    shown = [tuple(line.split()[:2]) for line in said.splitlines() if line.startswith(("test   ", "beyond  "))]
    assert shown == [*(("test", length) for length in "1234"), ("beyond", "5"), ("beyond", "6")]
    assert "bits_per_byte" not in facts  # a label is no text
    assert [facts["reasoning"]["test"][key] for key in ("h90", "asked")] == [record.h90, record.asked]
    # Of 7 tokens, where 5 were seen at once in training.
    assert record.beyond == {k: facts["reasoning"]["beyond"]["accuracy"][k] for k in "56"}
    assert record.asked_beyond == {"5": 120, "6": 60}
    assert record.area_beyond == pytest.approx((record.beyond["5"] + record.beyond["6"]) / 2)


@pytest.mark.slow
def test_two_ranks_at_zero3_ask_for_longer_chains_as_one_process_does(folder, tmp_path):
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 5}
    recipe = written(
        tmp_path / "zero3.yaml", model, {"path": str(folder), "mask_documents": True},
        steps=20, micro_batch_size=7, global_batch_size=14, eval_every=0, checkpoint_every=0,
        ds_config="ds_configs/zero3.json",
    )  # fmt: skip
    train(recipe, tmp_path / "run", ranks=2)
    (beyond,) = (r for r in read_metrics(tmp_path / "run") if r["kind"] == "eval" and r["split"] == "beyond")
    said = python("launch/evaluate.py", tmp_path / "run", "--split", "beyond")
    assert json.loads(said.splitlines()[-1])["loss"] == pytest.approx(beyond["loss"], abs=1e-5)
    facts = json.loads(python("launch/evaluate.py", tmp_path / "run", "--reasoning").splitlines()[-1])
    assert facts["reasoning"]["beyond"]["accuracy"] == beyond["accuracy"] and beyond["asked"]["6"] == 60


@pytest.mark.slow
def test_a_model_whose_positions_end_is_asked_no_longer_chains_and_says_so(folder, tmp_path):
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 5, "positions": "learned"}
    recipe = written(
        tmp_path / "learned.yaml", model, {"path": str(folder)},
        steps=2, micro_batch_size=8, global_batch_size=8, eval_every=0, test_samples=20, checkpoint_every=0,
    )  # fmt: skip
    train(recipe, tmp_path / "run")
    said = python("launch/evaluate.py", tmp_path / "run", "--reasoning")
    assert "beyond is left out: " in said and "of up to 7 tokens in split beyond, model.context = 5; take" in said
    assert set(json.loads(said.splitlines()[-1])["reasoning"]) == {"test"}
    assert RunRecord.read(tmp_path / "run").beyond == {}


@pytest.mark.slow
def test_a_curriculum_lengthens_chains_by_flops_and_a_resumed_run_goes_on_in_the_same_place(folder, tmp_path):
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 12, "vocab_size": 64}
    curriculum = {"start": 1, "end": 4, "flops": 5.0e7}
    recipe = written(
        tmp_path / "lengthening.yaml", model, {"path": str(folder), "mask_documents": True, "curriculum": curriculum},
        steps=12, micro_batch_size=8, global_batch_size=16, eval_every=0, test_samples=40, checkpoint_every=5,
    )  # fmt: skip
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "halves", ranks=2, train__micro_batch_size=4)
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step_00000012")
    train(recipe, tmp_path / "halves", train__micro_batch_size=16)
    whole, halves = (read_metrics(tmp_path / name) for name in ("whole", "halves"))
    losses = [[r["loss"] for r in records if r["kind"] == "train"] for records in (whole, halves)]
    assert len(losses[0]) == 12 and losses[1] == pytest.approx(losses[0], rel=1e-4)

    refused = train(recipe, tmp_path / "halves", expect=2, data__curriculum="{start: 1, end: 3, flops: 5.0e+7}")
    assert "curriculum" in refused and "Traceback" not in refused


def test_text_has_no_chains_to_be_asked_for(trained_run):
    said = python("launch/evaluate.py", trained_run, "--reasoning", expect=2)
    assert "--reasoning" in said and "holds text, not problems with chains" in said and "Traceback" not in said
    said = python("launch/evaluate.py", trained_run, "--reasoning", "--split", "val", expect=2)
    assert "--split val: --reasoning asks test and beyond" in said


def test_a_model_is_trained_on_the_labels_alone():
    """The loss of a batch with labels is that of its labelled positions."""
    torch.manual_seed(0)
    model = build_model(GPT2Config(n_layer=1, n_head=1, n_embd=8, context=8, vocab_size=20))
    ids, labels = torch.randint(0, 20, (2, 8)), torch.full((2, 8), -100)
    labels[0, 3], labels[1, 5] = 4, 7
    logits = model(ids).logits
    wanted = torch.nn.functional.cross_entropy(torch.stack([logits[0, 3], logits[1, 5]]), torch.tensor([4, 7]))
    assert model(ids, targets=labels).loss.item() == pytest.approx(wanted.item(), rel=1e-5)
