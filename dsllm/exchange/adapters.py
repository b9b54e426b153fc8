"""A run's live adapters as peft has them, and the base that they belong to.

    DIR/base       the frozen weights alone, and all that trained whole beside the adapters: a folder of transformers'
    DIR/adapter    adapter_config.json, adapter_model.safetensors: `PeftModel.from_pretrained(base, "DIR/adapter")`

A block that is used several times is several layers in DIR/base, each with its copy of the block's adapter. Ours has
three adapters for a fused q, k and v; peft has one for the whole matrix, so theirs is of three times the rank:

    A (3r, C) as it is;   B (3C, 3r), block diagonal, of our B (3C, r)
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dsllm.errors import CheckpointError
from dsllm.exchange.card import model_card
from dsllm.exchange.export import write_model
from dsllm.exchange.forms import Form, form_of
from dsllm.exchange.libraries import peft
from dsllm.exchange.settled import Settled
from dsllm.models.growable import PARTS, GrowableConfig
from dsllm.store import TensorStore
from dsllm.training.checkpoints import Checkpoint
from dsllm.training.loading import load_tokenizer_of
from dsllm.training.new_folder import check_free, prepared
from dsllm.training.precision import DTYPES, Precision

BASE, ADAPTER = "base", "adapter"


def export_adapters(checkpoint: Checkpoint, out: Path, dtype: Precision = "fp32") -> None:
    """Write the adapters of a checkpoint and their base. Raises `UserError`, and leaves nothing, as `export` does."""
    check_free(out)
    model = checkpoint.config().model
    if not isinstance(model, GrowableConfig) or model.lora is None:
        raise CheckpointError(f"{checkpoint.path}: its model has no live adapters; take --format hf")
    settled, tokenizer = Settled.of(checkpoint, adapters=False), load_tokenizer_of(checkpoint)
    form, rank, scale = form_of(settled, checkpoint.path), model.lora.rank, model.lora.scale
    tensors = dict(_tensors(model, checkpoint.store(), form))
    parts = [part for part in PARTS if model.lora.freeze != "attention" or part.startswith("attention")]
    ranks = {form.module(0, part).partition(".0.")[2]: PARTS[part] * rank for part in parts}
    config = peft().LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(out.absolute() / BASE),
        r=rank,
        lora_alpha=scale * rank,
        rank_pattern={f".*\\.{name}": rank for name, rank in ranks.items()},
        alpha_pattern={f".*\\.{name}": scale * rank for name, rank in ranks.items()},
        target_modules=sorted({name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A" in name}),
        fan_in_fan_out=form.fan_in_fan_out,
        inference_mode=True,
    )
    with prepared(out, "exporting") as folder:
        for name in (BASE, ADAPTER):
            (folder / name).mkdir()
        write_model(form, tokenizer, folder / BASE, dtype)
        (folder / BASE / "README.md").write_text(model_card(checkpoint, BASE, form), encoding="utf-8")
        config.save_pretrained(folder / ADAPTER)
        named = {f"base_model.model.{name}": tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
        save_file(named, folder / ADAPTER / "adapter_model.safetensors", {"format": "pt"})


def _tensors(model: GrowableConfig, store: TensorStore, form: Form) -> Iterator[tuple[str, Tensor]]:
    """The adapters of every executed layer, each in memory of its own: safetensors writes no shared one."""
    layers = [block for block in model.executed if block is not None]
    for layer, block in enumerate(layers):
        for part, fused in PARTS.items():
            if ("weight", f"blocks.{block}.{part}.lora_A") in store:
                a, b = (store["weight", f"blocks.{block}.{part}.lora_{kind}"] for kind in "AB")
                b = form.rows(part, torch.block_diag(*b.chunk(fused)))
                yield f"{form.module(layer, part)}.lora_A.weight", a.clone()
                yield f"{form.module(layer, part)}.lora_B.weight", b.clone()
