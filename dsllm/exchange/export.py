"""A checkpoint as a folder that `transformers` opens: `AutoModelForCausalLM.from_pretrained(folder)`.

config.json, generation_config.json    the class of transformers that is the same function, and how to generate
model.safetensors                      the weights, in several files and an index if there are many
tokenizer.json, tokenizer_config.json  the same tokens
README.md                              a model card of the run's own figures
*.py                                   the code of a model that transformers has not: pass trust_remote_code=True
"""

import json
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from dsllm.exchange.card import model_card
from dsllm.exchange.forms import Form, form_of
from dsllm.exchange.libraries import transformers
from dsllm.exchange.settled import Settled
from dsllm.exchange.tokenizer_files import write_tokenizer
from dsllm.tokenizer import Tokenizer
from dsllm.training.checkpoints import Checkpoint
from dsllm.training.loading import load_tokenizer_of
from dsllm.training.new_folder import check_free, prepared
from dsllm.training.precision import DTYPES, Precision

SHARD = "5GB"


def export(checkpoint: Checkpoint, out: Path, dtype: Precision = "fp32") -> None:
    """Write the model of a checkpoint, merged and unrolled, as a folder of transformers'.

    Holds no more than one file of the result at a time. Raises `UserError`, and leaves nothing, if the model has no
    such form, its tensors are damaged, or `out` is not free.
    """
    check_free(out)
    form, tokenizer = form_of(Settled.of(checkpoint), checkpoint.path), load_tokenizer_of(checkpoint)
    with prepared(out, "exporting") as folder:
        write_model(form, tokenizer, folder, dtype)
        (folder / "README.md").write_text(model_card(checkpoint, out.name, form), encoding="utf-8")


def write_model(form: Form, tokenizer: Tokenizer, folder: Path, dtype: Precision) -> None:
    """Write weights, configuration, tokenizer and code into a folder."""
    _write_weights(form, folder, DTYPES[dtype])
    _write_configs(form, tokenizer, folder, DTYPES[dtype])
    write_tokenizer(tokenizer, folder, form.config.max_position_embeddings)
    for name, content in form.code.items():
        (folder / name).write_text(content, encoding="utf-8")


def _write_weights(form: Form, folder: Path, dtype: torch.dtype) -> None:
    """Write the tensors into files of at most `SHARD`; those of one file are held at a time."""
    described = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in form.shapes.items()}
    split = split_torch_state_dict_into_shards(described, max_shard_size=SHARD)
    for file, names in split.filename_to_tensors.items():
        save_file({name: form.value(name).to(dtype).contiguous() for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_configs(form: Form, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json, and a generation_config.json that leaves out rows of the vocabulary which mean nothing."""
    config, end = form.config, tokenizer.end_of_text
    config.architectures, config.dtype = [form.architecture], dtype
    config.bos_token_id = config.eos_token_id = end
    config.save_pretrained(folder)
    unknown = list(range(tokenizer.size, config.vocab_size))
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    transformers().GenerationConfig(**tokens, suppress_tokens=unknown or None).save_pretrained(folder)
