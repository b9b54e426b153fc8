"""What all contenders train: the same model from the same weights, on the same batches, with the same optimizer.

A folder that needs none of this project to be read:

    problem.json         {"model": {… arguments of transformers' GPT2Config}, "lr": …, "betas": …, …}
    weights.safetensors  initial weights under transformers' names
    batches.npy          (steps, B, T + 1) int32: inputs and targets overlap
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dsllm.config import RunConfig
from dsllm.models import skeleton
from dsllm.models.gpt2 import GPT2Config
from dsllm.models.huggingface import GPT2, huggingface_config, layout_of, to_huggingface
from dsllm.training.sources import Batches, open_splits, resolve_vocabulary
from dsllm.training.tensors import initial_values


def write_problem(config: RunConfig, folder: Path) -> None:
    """What `launch/train.py` does with `config` on one process: its initial weights, its batches, its optimizer."""
    config, _ = resolve_vocabulary(config)
    train = config.train
    assert isinstance(config.model, GPT2Config) and train.schedule == "wsd"
    assert train.warmup_tokens == train.decay_tokens == 0, "contenders keep one learning rate"
    model = skeleton(config.model)
    fill = initial_values(model, train.seed)
    weights = {name: torch.empty(parameter.shape) for name, parameter in model.named_parameters()}
    for name, value in weights.items():
        fill(name, value)
    assert layout_of(config.model) is GPT2, "contenders have learned positions"
    named = to_huggingface(weights, config.model)
    save_file({name: value.contiguous() for name, value in named.items()}, folder / "weights.safetensors")
    loader = Batches(config, open_splits(config)["train"], 0, 1)
    steps = [loader.batch(step * train.global_batch_size, 0.0).tokens for step in range(train.steps)]
    loader.close()
    assert all(len(batch) == 1 for batch in steps), "contenders do not accumulate gradients"
    np.save(folder / "batches.npy", np.stack([batch[0] for batch in steps]).astype(np.int32))
    settings = {
        "model": huggingface_config(config.model),
        "lr": train.lr,
        "betas": [train.beta1, train.beta2],
        "eps": train.eps,
        "weight_decay": train.weight_decay,
        "grad_clip": train.grad_clip,
    }
    (folder / "problem.json").write_text(json.dumps(settings))
