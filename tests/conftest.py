"""What many tests need: real text as tokens, and a recipe for a model that trains in a second."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.launching import run, train


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that workers that take file by file end at about the same time.

    A slow test is taken for 10 seconds, or says how many: `@pytest.mark.slow(seconds=40)`.
    """
    seconds: Counter[Path] = Counter()
    for item in items:
        marker = item.get_closest_marker("slow") or item.get_closest_marker("multihost")
        if marker is not None:
            seconds[item.path] += marker.kwargs.get("seconds", 10)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of mpmath as bytes, split into train, val and test."""
    folder = tmp_path_factory.mktemp("data") / "mpmath"
    command = [sys.executable, "-m", "data_prep", "tokenize", "--tokenizer", "bytes"]
    run([*command, "--source", "installed:mpmath", "--out", folder])
    return folder


@pytest.fixture(scope="session")
def recipe(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 on `data_folder`: 8 steps of 8 sequences, in fp32."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(
        f"""
run_dir: runs/small
model: {{name: gpt2, n_layer: 2, n_head: 2, n_embd: 32, context: 32}}
data: {{path: {data_folder}}}
train: {{steps: 8, micro_batch_size: 2, global_batch_size: 8, lr: 1.0e-2, precision: fp32,
        eval_every: 4, eval_samples: 9, test_samples: 7, checkpoint_every: 4}}
monitor: {{log_every: 1, new_tokens: 4}}
"""
    )
    return path


@pytest.fixture(scope="session")
def growing(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks that become four after step 2 of 4, under adapters."""
    path = tmp_path_factory.mktemp("recipe") / "growing.yaml"
    path.write_text(
        f"""
run_dir: runs/growing
model: {{name: progressive, n_layer: 2, n_head: 2, n_embd: 16, context: 16}}
data: {{path: {data_folder}}}
train: {{steps: 4, micro_batch_size: 2, global_batch_size: 4, lr: 1.0e-2, precision: fp32,
        eval_every: 3, eval_samples: 4, test_samples: 4, checkpoint_every: 0}}
growth: {{operator: interpose, lora: {{rank: 2}}, policy: {{name: schedule, at: [0.5]}}, watch_every: 0,
         probe_samples: 4}}
monitor: {{log_every: 1, tensorboard: false, new_tokens: 4}}
"""
    )
    return path


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 for bytes, trained by transformers for a few steps, in a folder."""
    import torch
    import transformers

    from dsllm.exchange.tokenizer_files import write_tokenizer
    from dsllm.tokenizer import load_tokenizer

    folder = tmp_path_factory.mktemp("pretrained") / "gpt2"
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=256, eos_token_id=256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.tensor(list(Path(__file__).read_bytes()))
    for step in range(20):
        batch = text[: 8 * 64].view(8, 64).roll(step, 1)
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    write_tokenizer(load_tokenizer("bytes"), folder, 64)
    return folder


@pytest.fixture(scope="session")
def trained_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of `recipe` in a single process, at ZeRO 0."""
    run_dir = tmp_path_factory.mktemp("runs") / "one_rank"
    train(recipe, run_dir, ranks=1, train__ds_config="ds_configs/zero0.json")
    return run_dir
