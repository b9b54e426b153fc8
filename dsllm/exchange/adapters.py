"""A run's live adapters as peft has them, and the base that they belong to.

    DIR/base       the frozen weights alone, and all that trained whole beside the adapters: a folder of transformers'
    DIR/adapter    adapter_config.json, adapter_model.safetensors: `PeftModel.from_pretrained(base, "DIR/adapter")`

A block that is used several times is several layers in DIR/base, each with its copy of the block's adapter. Ours has
three adapters for a fused q, k and v; peft has one for the whole matrix, so theirs is of three times the rank:

    A (3r, C) as it is;   B (3C, 3r), block diagonal, of our B (3C, r)
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dsllm.errors import CheckpointError
from dsllm.exchange.card import model_card
from dsllm.exchange.export import DTYPES, Dtype, write_plain
from dsllm.exchange.libraries import peft
from dsllm.exchange.plain import Plain
from dsllm.models.growable import PARTS
from dsllm.models.huggingface import layout_of
from dsllm.models.progressive import ProgressiveConfig
from dsllm.training.checkpoints import Checkpoint
from dsllm.training.loading import load_tokenizer_of
from dsllm.training.new_folder import check_free, prepared

PREFIX = "base_model.model."


def export_adapters(checkpoint: Checkpoint, out: Path, dtype: Dtype = "fp32") -> None:
    """Write the adapters of a checkpoint and their base. Raises `UserError`, and leaves nothing, as `export` does."""
    check_free(out)
    model = checkpoint.config().model
    if not isinstance(model, ProgressiveConfig) or model.lora is None:
        raise CheckpointError(f"{checkpoint.path}: its model has no live adapters; take --format hf")
    plain, tokenizer = Plain.of(checkpoint, adapters=False), load_tokenizer_of(checkpoint)
    layout, store = layout_of(plain.section), checkpoint.store()
    tensors: dict[str, Tensor] = {}
    adapted = sorted(name.removesuffix(".lora_A").split(".", 2)[2] for name in store.names() if ".lora_A" in name)
    for layer, block in enumerate(model.executed):
        for part in dict.fromkeys(adapted):
            a, b = (store["weight", f"blocks.{block}.{part}.lora_{kind}"] for kind in "AB")
            b = torch.block_diag(*b.chunk(PARTS[part]))
            b = layout.turned(f"blocks.{layer}.{part}.bias", b, plain.section.n_head)
            theirs = f"{PREFIX}{layout.block.format(layer)}.{layout.parts[part]}"
            # Tensors of layers that share a block share memory, which safetensors does not write.
            tensors[f"{theirs}.lora_A.weight"] = a.to(DTYPES[dtype], copy=True)
            tensors[f"{theirs}.lora_B.weight"] = b.to(DTYPES[dtype], copy=True)
    ranks = {layout.parts[part]: PARTS[part] * model.lora.rank for part in dict.fromkeys(adapted)}
    config = peft().LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(out.absolute() / "base"),
        r=model.lora.rank,
        lora_alpha=model.lora.scale * model.lora.rank,
        rank_pattern={f".*\\.{name}": rank for name, rank in ranks.items()},
        alpha_pattern={f".*\\.{name}": model.lora.scale * rank for name, rank in ranks.items()},
        target_modules=list(ranks),
        fan_in_fan_out=layout.transposed,
        inference_mode=True,
    )
    with prepared(out, "exporting") as folder:
        for name in ("base", "adapter"):
            (folder / name).mkdir()
        write_plain(plain, tokenizer, folder / "base", dtype)
        (folder / "base" / "README.md").write_text(
            model_card(checkpoint, "base", layout.architecture, plain.parameters)
        )
        config.save_pretrained(folder / "adapter")
        save_file(tensors, folder / "adapter" / "adapter_model.safetensors", {"format": "pt"})
