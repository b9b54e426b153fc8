"""A checkpoint as a folder that `transformers` opens: `AutoModelForCausalLM.from_pretrained(folder)`.

config.json, generation_config.json    the class of transformers that is the same function, and how to generate
model.safetensors                      the weights, in several files and an index if there are many
tokenizer.json, tokenizer_config.json  the same tokens
README.md                              a model card of the run's own figures
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from dsllm.exchange.card import model_card
from dsllm.exchange.libraries import transformers
from dsllm.exchange.plain import Plain
from dsllm.exchange.tokenizer_files import write_tokenizer
from dsllm.models.huggingface import GPT2, huggingface_config, layout_of
from dsllm.tokenizer import Tokenizer
from dsllm.training.checkpoints import Checkpoint
from dsllm.training.loading import load_tokenizer_of
from dsllm.training.new_folder import check_free, prepared

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD = "5GB"


def export(checkpoint: Checkpoint, out: Path, dtype: Dtype = "fp32") -> None:
    """Write the model of a checkpoint, merged and unrolled, as a folder of transformers'.

    Holds one tensor at a time, and one file of the result. Raises `UserError`, and leaves nothing, if the model has no
    such form, its tensors are damaged, or `out` is not free.
    """
    check_free(out)
    plain, tokenizer = Plain.of(checkpoint), load_tokenizer_of(checkpoint)
    with prepared(out, "exporting") as folder:
        write_plain(plain, tokenizer, folder, dtype)
        architecture = layout_of(plain.section).architecture
        (folder / "README.md").write_text(model_card(checkpoint, out.name, architecture, plain.parameters))


def write_plain(plain: Plain, tokenizer: Tokenizer, folder: Path, dtype: Dtype) -> None:
    """Write a plain model: weights, configuration, tokenizer."""
    section, layout = plain.section, layout_of(plain.section)
    ours = {theirs: name for name, theirs in layout.names(section.n_layer).items()}

    def value(name: str) -> Tensor:
        return layout.turned(ours[name], plain[ours[name]], section.n_head)

    shapes = {
        theirs: layout.turned(name, torch.empty(plain.shapes[name], device="meta"), section.n_head)
        for theirs, name in ours.items()
    }
    write_weights({name: tensor.shape for name, tensor in shapes.items()}, value, folder, DTYPES[dtype])
    of = transformers().GPT2Config if layout is GPT2 else transformers().GPTNeoXConfig
    write_configs(of(**huggingface_config(section)), layout.architecture, tokenizer, folder, dtype)
    write_tokenizer(tokenizer, folder, section.context)


def write_weights(
    shapes: dict[str, torch.Size], value: Callable[[str], Tensor], folder: Path, dtype: torch.dtype
) -> None:
    """Write tensors, by names and shapes, into files of at most `SHARD`, whose tensors alone are held at a time."""
    described = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(described, max_shard_size=SHARD)
    for file, names in split.filename_to_tensors.items():
        save_file({name: value(name).to(dtype).contiguous() for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_configs(config: Any, architecture: str, tokenizer: Tokenizer, folder: Path, dtype: Dtype) -> None:
    """Write config.json and generation_config.json, which generates no rows of the vocabulary that mean nothing."""
    end = tokenizer.end_of_text
    config.architectures, config.dtype = [architecture], DTYPES[dtype]
    config.bos_token_id = config.eos_token_id = end
    config.save_pretrained(folder)
    unknown: Iterable[int] = range(tokenizer.size, config.vocab_size)
    generation = transformers().GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, suppress_tokens=list(unknown) or None
    )
    generation.save_pretrained(folder)
