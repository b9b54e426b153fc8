"""Somebody else's GPT-2 goes in, is grown, trained by adapters, goes out and is opened: the whole way, by commands."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.loading import load_model
from dsllm.training.monitor import read_metrics
from tests.forked import forked


@pytest.fixture
def config(data_folder: Path, tmp_path: Path) -> Path:
    """What the recipe grow_pretrained_gpt2 asks for, on a small scale."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
run_dir: unnamed
model: {{name: progressive}}
data: {{path: {data_folder}}}
train: {{steps: 12, micro_batch_size: 4, global_batch_size: 8, lr: 1.0e-2, precision: fp32, eval_every: 6,
        eval_samples: 8, test_samples: 8, checkpoint_every: 6}}
monitor: {{tensorboard: false, log_every: 1}}
""")
    return path


def grow(pretrained: Path, config: Path, out: Path, *more: object, expect: int = 0) -> str:
    command = ["launch/grow.py", f"hf:{pretrained}", "--config", config, "--out", out, *more]
    return forked(command, expect=expect)


def test_in_grown_trained_out_and_opened(pretrained, config, tmp_path):
    import peft  # which takes seconds

    deep = tmp_path / "deep"
    told = grow(pretrained, config, deep, "--operator", "interpose", "--diverge", "--lora.rank", 4)
    assert "3 distinct blocks, 3 layers executed → 6 distinct blocks, 6 layers executed" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "recipe.yaml"]
    (receipt,) = deep.glob("growth/*/receipt.json")
    assert json.loads(receipt.read_text())["source"] == f"hf:{pretrained}"

    forked(["launch/train.py", "--config", deep / "config.yaml"], ranks=2)
    losses = [record["loss"] for record in read_metrics(deep) if record["kind"] == "train"]
    assert len(losses) == 12 and losses[-1] < losses[0]
    store = find_checkpoint(deep).store()
    frozen = transformers.AutoModelForCausalLM.from_pretrained(pretrained).transformer.h[1].mlp.c_fc.weight
    for block in (2, 3):
        assert store["weight", f"blocks.{block}.mlp.up.weight"].equal(frozen.t())
        assert store["weight", f"blocks.{block}.mlp.up.lora_B"].any()

    forked(["launch/export.py", deep, "--format", "hf", "--out", tmp_path / "whole"])
    forked(["launch/export.py", deep, "--format", "peft", "--out", tmp_path / "parts"])
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    parts = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "parts" / "adapter").eval()
    assert type(whole).__name__ == "GPT2LMHeadModel" and whole.config.n_layer == 6
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "whole")
    prompt = tokenizer("def main():", return_tensors="pt").input_ids
    ours = load_model(deep)
    with torch.no_grad():
        torch.testing.assert_close(whole(prompt).logits, ours(prompt).logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts(prompt).logits, ours(prompt).logits, rtol=1e-5, atol=1e-5)
    text = whole.generate(prompt, max_new_tokens=20, do_sample=False)
    assert text.equal(ours.generate(prompt, 20, temperature=0, known=257, stop_token=256))


def test_an_operator_that_preserves_the_function_preserves_theirs(pretrained, config, tmp_path):
    grow(pretrained, config, tmp_path / "deep", "--operator", "zero_init")
    ids = torch.arange(128).view(2, 64)
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(pretrained).eval()(ids).logits
        torch.testing.assert_close(load_model(tmp_path / "deep")(ids).logits, theirs, rtol=1e-5, atol=1e-5)


def test_it_trains_on_other_data_in_the_precision_of_then(pretrained, config, tmp_path, data_folder):
    """Nothing has been read yet, so another order of samples breaks nothing."""
    grow(pretrained, config, tmp_path / "deep", "--operator", "stack")
    options = ["--train.seed=7", "--train.steps=2", "--train.precision=bf16", "--train.eval_every=0"]
    forked(["launch/train.py", "--config", tmp_path / "deep" / "config.yaml", *options])
    assert find_checkpoint(tmp_path / "deep").origin.precision == "bf16"


def test_what_is_wrong_is_one_message_and_nothing_is_left(pretrained, config, tmp_path, trained_run):
    before = sorted(tmp_path.iterdir())
    output = grow(tmp_path / "nowhere", config, tmp_path / "deep", "--operator", "stack", expect=2)
    assert output.startswith(f"error: hf:{tmp_path / 'nowhere'}: no such folder, and it cannot be had from the hub")
    output = grow(pretrained, config, tmp_path / "deep", "--operator", "nothing", expect=2)
    assert output.startswith("error: ") and "nothing" in output
    command = ["launch/grow.py", trained_run, "--config", config, "--out", tmp_path / "deep", "--operator", "stack"]
    assert forked(command, expect=2).startswith(f"error: --config {config}: the checkpoint has its own")
    assert sorted(tmp_path.iterdir()) == before
