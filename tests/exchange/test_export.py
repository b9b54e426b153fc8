"""What is exported is opened by transformers and peft alone, and is the same function."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors import safe_open

from dsllm.errors import CheckpointError, ConfigError
from dsllm.exchange import export as exporting
from dsllm.exchange.adapters import export_adapters
from dsllm.exchange.export import export
from dsllm.exchange.forms import form_of
from dsllm.models.progressive import Progressive, ProgressiveConfig
from dsllm.training.checkpoints import complete_checkpoints, find_checkpoint
from dsllm.training.loading import load_model, load_tokenizer_of
from tests.forked import forked
from tests.launching import train

Trained = Callable[..., Path]

LORA = "{rank: 4, alpha: 8.0}"
MODELS = {
    "gpt2, learned positions": "name: gpt2, n_layer: 3, positions: learned",
    "gpt2, rotary positions": "name: gpt2, n_layer: 3",
    "shared blocks": "name: progressive, n_layer: 4, uses: 2, positions: learned",
    "adapters on shared blocks": f"name: progressive, n_layer: 4, uses: [1, 3], positions: learned, lora: {LORA}",
    "adapters, rotary": f"name: progressive, n_layer: 2, lora: {LORA}, bases: [0, 0]",
    "adapters on attention alone": "name: progressive, n_layer: 2, lora: {rank: 4, freeze: attention}",
    "mixed from templates": "name: progressive, n_layer: 4, uses: 2, mixture: {templates: 2}",
    "convolution attention": "name: conv_attention, strides: [4, 2], widths: [16, 32, 48], encoder: [1, 0], "
    "decoder: [0, 1]",
    "convolution attention, more": "name: conv_attention, strides: [2], widths: [32, 32], encoder: [1], decoder: [1], "
    f"taps: [4], expansion: 2, windows: [8, null], read_out: [0], lora: {LORA}",
    "a window": "name: gpt2, n_layer: 3, window: 8",
    "a window, shared blocks and adapters": f"name: progressive, n_layer: 4, uses: 2, window: 12, lora: {LORA}",
    "open gates": "name: progressive, n_layer: 2, gate: {blocks: [1], steps: 2}, positions: learned",
}


CLASSES = {
    "learned": "GPT2LMHeadModel",
    "rotary": "GPTNeoXForCausalLM",
    "levels": "ConvAttentionForCausalLM",
    "window": "Starcoder2ForCausalLM",
}


@pytest.fixture(scope="session")
def trained(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of four steps of a model, each trained once."""
    runs: dict[str, Path] = {}

    def run(model: str, **options: object) -> Path:
        key = f"{model} {options}"
        if key not in runs:
            folder = tmp_path_factory.mktemp("exported")
            recipe = folder / "recipe.yaml"
            recipe.write_text(f"""
run_dir: {folder / "run"}
model: {{n_head: 2, n_embd: 32, context: 48, {model}}}
data: {{path: {data_folder}}}
train: {{steps: 4, micro_batch_size: 2, global_batch_size: 4, lr: 2.0e-2, precision: fp32, eval_every: 0,
        test_samples: 4, checkpoint_every: 2, warmup_tokens: 0}}
monitor: {{tensorboard: false}}
""")
            train(recipe, folder / "run", **options)
            runs[key] = folder / "run"
        return runs[key]

    return run


def ids(rows: int = 3, tokens: int = 48) -> torch.Tensor:
    return torch.randint(257, (rows, tokens), generator=torch.Generator().manual_seed(0))


def opened(folder: Path, **options: object) -> transformers.PreTrainedModel:
    """What transformers makes of a folder; it finds all weights that it looks for, and no others."""
    ask = transformers.AutoModelForCausalLM.from_pretrained
    model, found = ask(folder, output_loading_info=True, trust_remote_code=bool(list(folder.glob("*.py"))), **options)
    assert not any(found.values()), found
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_text_are_ours(name, trained, tmp_path):
    run = trained(MODELS[name])
    checkpoint = find_checkpoint(run)
    export(checkpoint, tmp_path / "out")
    ours, theirs = load_model(run), opened(tmp_path / "out")
    kind = "window" if getattr(ours.config, "window", None) else getattr(ours.config, "positions", "levels")
    assert type(theirs).__name__ == CLASSES[kind]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids()).logits, ours(ids()).logits, rtol=1e-5, atol=1e-5)
    known = load_tokenizer_of(checkpoint).size
    prompt = ids(1, 16)
    text = ours.generate(prompt, 24, temperature=0, known=known, stop_token=256)
    assert theirs.generate(prompt, max_new_tokens=24, do_sample=False).equal(text)


def test_the_tokenizer_gives_the_same_tokens_and_knows_where_a_text_ends(trained, tmp_path):
    run = trained(MODELS["gpt2, rotary positions"])
    checkpoint = find_checkpoint(run)
    export(checkpoint, tmp_path / "out")
    ours, theirs = load_tokenizer_of(checkpoint), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = Path(__file__).read_text() + "  \n\n äöü 漢字 don't\r\n\t12345 \n \n   \n"
    assert theirs(text)["input_ids"] == ours.encode(text).tolist()
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == ours.end_of_text and theirs.model_max_length == 48


def test_rows_of_the_vocabulary_that_mean_nothing_are_never_generated(trained, tmp_path):
    run = trained(MODELS["gpt2, rotary positions"])
    export(find_checkpoint(run), tmp_path / "out")
    model = opened(tmp_path / "out")
    assert model.config.vocab_size == 320  # 257 symbols, rounded up
    text = model.generate(ids(4, 8), max_new_tokens=40, do_sample=True, temperature=100.0, top_k=0)
    assert text.max() < 257


ADAPTED = [name for name, model in MODELS.items() if "lora" in model and "window:" not in model]


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_go_to_peft_and_onto_their_exported_base(name, trained, tmp_path):
    import peft  # which takes seconds

    run = trained(MODELS[name])
    export_adapters(find_checkpoint(run), tmp_path / "out")
    base = opened(tmp_path / "out" / "base")
    with torch.no_grad():
        alone = base(ids()).logits.clone()
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
        expected = load_model(run)(ids()).logits
        torch.testing.assert_close(adapted(ids()).logits, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(alone, expected, atol=1e-3)
        torch.testing.assert_close(adapted.merge_and_unload()(ids()).logits, expected, rtol=1e-5, atol=1e-5)
    own_code = bool(list((tmp_path / "out" / "base").glob("*.py")))
    ask = peft.AutoPeftModelForCausalLM.from_pretrained
    auto = ask(tmp_path / "out" / "adapter", trust_remote_code=own_code).eval()
    with torch.no_grad():
        torch.testing.assert_close(auto(ids()).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_zero_3_on_two_ranks_is_exported_by_one_process(trained, tmp_path):
    run = trained(MODELS["adapters, rotary"], ranks=2, train__ds_config="ds_configs/zero3.json")
    forked(["launch/export.py", run, "--format", "hf", "--out", tmp_path / "out"])
    with torch.no_grad():
        logits = opened(tmp_path / "out")(ids()).logits
        torch.testing.assert_close(logits, load_model(run)(ids()).logits, rtol=1e-5, atol=1e-5)


def test_half_precision_is_written_and_said(trained, tmp_path):
    run = trained(MODELS["gpt2, rotary positions"])
    export(find_checkpoint(run), tmp_path / "out", "bf16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_a_large_model_is_written_in_several_files(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SHARD", "50KB")
    run = trained(MODELS["gpt2, learned positions"])
    export(find_checkpoint(run), tmp_path / "out")
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 2
    with torch.no_grad():
        torch.testing.assert_close(
            opened(tmp_path / "out")(ids()).logits, load_model(run)(ids()).logits, rtol=1e-5, atol=1e-5
        )


def test_the_card_has_the_runs_own_figures(trained, tmp_path):
    run = trained(MODELS["gpt2, rotary positions"])
    export(find_checkpoint(run), tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    (test,) = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"test"' in line)
    assert f"| loss on test | {test['loss']:.4f}, {test['bits_per_byte']:.4f} bits per byte" in card
    model = load_model(run)
    assert f"| parameters | {model.count_parameters():,} |" in card
    assert f"| training tokens | {4 * 4 * 48:,} |" in card


def test_a_run_that_has_not_come_to_its_end_is_refused_but_its_checkpoint_is_not(trained, tmp_path):
    run = trained(MODELS["gpt2, rotary positions"])
    early = complete_checkpoints(run)[0]
    text = (early / "config.yaml").read_text()
    assert "steps: 4" in text
    halfway = tmp_path / "halfway"
    (halfway / "checkpoints").mkdir(parents=True)
    (halfway / "checkpoints" / early.name).symlink_to(early)
    output = forked(["launch/export.py", halfway, "--format", "hf", "--out", tmp_path / "out"], expect=2)
    assert output.startswith(f"error: {halfway}: stopped at step 2 of 4; train on with the same command, or name")
    assert not (tmp_path / "out").exists()
    forked(["launch/export.py", early, "--format", "hf", "--out", tmp_path / "out"])
    opened(tmp_path / "out")


class Unlike(Progressive):
    """A user's own, which may compute what it likes with the section of a model that has a form."""


def test_a_subclass_of_a_model_that_has_a_form_has_none():
    own = SimpleNamespace(section=ProgressiveConfig(name=f"{__name__}:Unlike", n_layer=2))
    with pytest.raises(ConfigError, match=r":Unlike: there is no form of it for transformers"):
        form_of(own, Path("runs/mine"))


def test_what_has_no_such_form_is_refused_and_nothing_is_left(trained, tmp_path):
    windowed = find_checkpoint(trained("name: gpt2, n_layer: 1, window: 8, positions: learned"))
    with pytest.raises(ConfigError, match="window = 8: no class of transformers has a window and learned positions"):
        export(windowed, tmp_path / "out")
    adapted = find_checkpoint(trained(MODELS["a window, shared blocks and adapters"]))
    with pytest.raises(ConfigError, match="window = 12: its adapters do not go to peft"):
        export_adapters(adapted, tmp_path / "out")
    column = find_checkpoint(
        trained("name: progressive, n_layer: 2, lateral: {n_embd: 16, n_head: 2, rank: 4, freeze: false}")
    )
    with pytest.raises(ConfigError, match="second column"):
        export(column, tmp_path / "out")
    opening = find_checkpoint(trained("name: progressive, n_layer: 2, gate: {blocks: [1], steps: 100}"))
    with pytest.raises(CheckpointError, match="still opening"):
        export(opening, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no live adapters; take --format hf"):
        export_adapters(windowed, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="there is something already"):
        export(find_checkpoint(trained(MODELS["gpt2, rotary positions"])), tmp_path)


GENERATING = """
import sys
sys.modules["dsllm"] = None
import torch, transformers
from torch.nn.functional import cross_entropy
model = transformers.AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True).eval()
prompt = torch.arange(32).reshape(2, 16)
seen = []
hook = lambda module, arguments, options: seen.append(options["input_ids"].shape[1])
handle = model.register_forward_pre_hook(hook, with_kwargs=True)
cached = model.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None)
assert seen == [16] + [1] * 19, seen
handle.remove()
assert cached.equal(model.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, use_cache=False))
for cache in (True, False):
    beams = dict(num_beams=3, do_sample=False, eos_token_id=None, use_cache=cache)
    print(model.generate(prompt, max_new_tokens=12, **beams).tolist())
found = model(prompt, labels=prompt)
assert torch.isclose(found.loss, cross_entropy(found.logits[:, :-1].flatten(0, 1), prompt[:, 1:].flatten()))
"""


def test_convolution_attention_generates_with_its_cache_and_needs_no_other_file(trained, tmp_path):
    run = trained(MODELS["convolution attention"])
    export(find_checkpoint(run), tmp_path / "out")
    program = GENERATING.format(folder=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with_cache, without = done.stdout.splitlines()
    assert with_cache == without


def test_convolution_attention_says_what_it_cannot_read(trained, tmp_path):
    run = trained(MODELS["convolution attention"])
    export(find_checkpoint(run), tmp_path / "out")
    model = opened(tmp_path / "out")
    with pytest.raises(ValueError, match="padding on the left"):
        model(ids(1, 4), attention_mask=torch.tensor([[0, 1, 1, 1]]))
    with pytest.raises(ValueError, match="more than 48 tokens"):
        model.generate(ids(1, 40) % 200, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()
