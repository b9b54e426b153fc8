"""Runs that begin with a pre-trained GPT-2 of transformers: its function at first, its sizes, and no other model's."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dsllm.exchange.export import export
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.loading import load_model
from dsllm.training.monitor import read_metrics
from tests.launching import train


@pytest.fixture
def small_step(data_folder: Path, tmp_path: Path) -> Path:
    """One step that moves next to nothing."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
run_dir: unnamed
data: {{path: {data_folder}}}
train: {{steps: 1, micro_batch_size: 2, global_batch_size: 4, lr: 1.0e-12, precision: fp32, eval_every: 0,
        test_samples: 0, weight_decay: 0.0}}
monitor: {{tensorboard: false}}
""")
    return path


def logits_of(folder: Path, tokens: int = 64) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids(tokens)).logits
    return logits


def ids(tokens: int = 64) -> torch.Tensor:
    return torch.randint(257, (2, tokens), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def begins_as(folder: Path, run: Path, tokens: int = 64) -> None:
    torch.testing.assert_close(load_model(run)(ids(tokens)).logits, logits_of(folder, tokens), rtol=1e-5, atol=1e-5)


def test_a_run_begins_with_its_weights_and_sizes(pretrained, small_step, tmp_path):
    train(small_step, tmp_path / "run", init_from=f"hf:{pretrained}")
    begins_as(pretrained, tmp_path / "run")
    model = load_model(tmp_path / "run").config
    assert (model.n_layer, model.n_head, model.n_embd, model.context, model.vocab_size) == (3, 2, 32, 64, 257)
    assert model.positions == "learned"


@pytest.mark.parametrize(
    "model",
    [
        {"model__name": "progressive"},
        {"model__name": "progressive", "model__lora": "{rank: 4}"},
        {"model__name": "progressive", "model__lateral": "{n_embd: 16, n_head: 2, rank: 4}"},
    ],
    ids=["plain", "adapters", "a second column"],
)
def test_a_model_that_grows_begins_with_it_too(model, pretrained, small_step, tmp_path):
    train(small_step, tmp_path / "run", init_from=f"hf:{pretrained}", **model)
    begins_as(pretrained, tmp_path / "run")


@pytest.mark.slow
def test_it_is_taken_apart_over_ranks_at_zero_3(pretrained, small_step, tmp_path):
    options = {"train__ds_config": "ds_configs/zero3.json"}
    train(small_step, tmp_path / "run", ranks=2, init_from=f"hf:{pretrained}", **options)
    begins_as(pretrained, tmp_path / "run")


def test_a_shorter_context_keeps_the_first_positions(pretrained, small_step, tmp_path):
    train(small_step, tmp_path / "run", init_from=f"hf:{pretrained}", model__context=32)
    begins_as(pretrained, tmp_path / "run", tokens=32)


def test_what_was_exported_comes_in_again(trained_run, small_step, tmp_path):
    export(find_checkpoint(trained_run), tmp_path / "rotary")
    train(small_step, tmp_path / "run", init_from=f"hf:{tmp_path / 'rotary'}")
    begins_as(tmp_path / "rotary", tmp_path / "run", tokens=32)


def test_names_without_prefix_and_several_files_are_read(pretrained, small_step, tmp_path):
    """As OpenAI's GPT-2 on the hub has them, and as large models are saved."""
    shutil.copytree(pretrained, tmp_path / "parts")
    weights = load_file(tmp_path / "parts" / "model.safetensors")
    (tmp_path / "parts" / "model.safetensors").unlink()
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    files: dict[str, str] = {}
    for number, names in enumerate((sorted(bare)[::2], sorted(bare)[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: bare[name] for name in names}, tmp_path / "parts" / file)
        files |= dict.fromkeys(names, file)
    (tmp_path / "parts" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    train(small_step, tmp_path / "run", init_from=f"hf:{tmp_path / 'parts'}")
    begins_as(pretrained, tmp_path / "run")


def test_a_run_resumes_without_the_folder(pretrained, small_step, tmp_path):
    moved = shutil.copytree(pretrained, tmp_path / "moved")
    train(small_step, tmp_path / "run", init_from=f"hf:{moved}")
    shutil.rmtree(moved)
    train(small_step, tmp_path / "run", init_from=f"hf:{moved}", train__steps=2)
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r.get("event") == "resume"] == [1]
    begins_as(pretrained, tmp_path / "run")


def changed_config(**changes: object):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def other_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"a": 97', '"a": 98').replace('"b": 98', '"b": 97'))


def leading_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": "../model"}}))


def of_other_tokens(folder: Path) -> None:
    for file in [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        file.unlink()
    changed_config(vocab_size=900)(folder)


WRONG = {
    "another architecture": (changed_config(model_type="llama"), "model_type = 'llama' in config.json"),
    "another activation": (changed_config(activation_function="relu"), "activation_function = 'relu' in config.json"),
    "another width of MLPs": (changed_config(n_inner=100), "n_inner = 100 in config.json, and our GPT-2 has 128"),
    "no size": (changed_config(n_layer="many"), "n_layer = 'many' in config.json is no size"),
    "more layers than it has": (changed_config(n_layer=4), "has no tensor for blocks.3."),
    "wider than it is": (changed_config(n_embd=64), "is of the shape"),
    "a tensor is missing": (without_a_tensor, "has no tensor for blocks.1.mlp.up.weight"),
    "cut short": (cut_short, "cannot be read"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json: No such file"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: no JSON object"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "other tokens": (other_tokens, "token 97 of the data's tokenizer (bytes) is 'a', which is 98 there"),
    "no tokenizer, another number of tokens": (
        of_other_tokens,
        "its vocabulary has 900 tokens, and the data's tokenizer",
    ),
    "an index that leads outside": (leading_outside, "its weight_map names no files of this folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_the_folder_is_said_in_one_message(name, pretrained, small_step, tmp_path):
    change, words = WRONG[name]
    folder = shutil.copytree(pretrained, tmp_path / "copy")
    change(folder)
    output = train(small_step, tmp_path / "run", expect=2, init_from=f"hf:{folder}")
    assert output.startswith("error: ") and words in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


OPTIONS = {
    "n_layer": ({"model__n_layer": 4}, "model.n_layer = 4: hf:{folder} has 3; leave it out"),
    "context": ({"model__context": 128}, "model.context = 128: hf:{folder} has 64; leave it out"),
    "model": ({"model__name": "conv_attention"}, "model.name = conv_attention: init_from begins with a GPT-2"),
    "mixture": ({"model__name": "progressive", "model__mixture": "{templates: 2}"}, "begin with plain blocks"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_section_that_does_not_fit_it_is_named(name, pretrained, small_step, tmp_path):
    options, words = OPTIONS[name]
    output = train(small_step, tmp_path / "run", expect=2, init_from=f"hf:{pretrained}", **options)
    assert words.format(folder=pretrained) in output and not (tmp_path / "run").exists()


def test_a_hub_that_cannot_be_reached_is_said(small_step, tmp_path, monkeypatch):
    output = train(small_step, tmp_path / "run", expect=2, init_from="hf:nobody/nothing")
    assert "hf:nobody/nothing: no such folder, and it cannot be had from the hub" in output
    output = train(small_step, tmp_path / "run", expect=2, init_from="gpt2")
    assert "init_from = 'gpt2': write hf: and a folder" in output


def test_a_run_that_began_with_other_weights_does_not_go_on(pretrained, small_step, tmp_path):
    train(small_step, tmp_path / "run", init_from=f"hf:{pretrained}")
    other = shutil.copytree(pretrained, tmp_path / "other")
    output = train(small_step, tmp_path / "run", expect=2, init_from=f"hf:{other}", train__steps=2)
    assert f"init_from was hf:{pretrained}, now hf:{other}" in output
