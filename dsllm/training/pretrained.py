"""A GPT-2 of Hugging Face transformers as where a run begins: its sizes, and its tensors under our names.

    pretrained = Pretrained.open("hf:gpt2_folder")
    pretrained.sizes                      n_layer 12, n_head 12, n_embd 768, context 1024, vocab_size 50257, …
    pretrained.fill("blocks.3.mlp.up.weight", tensor)

A folder of `GPT2LMHeadModel`, or of the `GPTNeoXForCausalLM` that rotary models are exported as; or the name of either
on the hub. Weights are read from safetensors, one tensor at a time, and nothing in a file is ever run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsllm.data.files import os_errors_named
from dsllm.errors import ConfigError, DataError, shown
from dsllm.json_file import parse_json
from dsllm.models import huggingface
from dsllm.models.huggingface import Layout

PREFIX = "hf:"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIXED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    "gpt_neox": {
        "hidden_act": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_eps": (1e-5,),
        "use_parallel_residual": (False,),
        "attention_bias": (True,),
        "tie_word_embeddings": (True,),
    },
}
"""By model_type: what has to be as our GPT-2 has it, where config.json says it."""
ASSUMED = {"gpt_neox": {"use_parallel_residual": True, "tie_word_embeddings": False, "hidden_act": "gelu"}}
"""What config.json means where it says nothing, unless that is as ours."""
SIZES = {
    "gpt2": {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "context": "n_positions"},
    "gpt_neox": {
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_embd": "hidden_size",
        "context": "max_position_embeddings",
    },
}
LAYOUTS = {"gpt2": huggingface.GPT2, "gpt_neox": huggingface.NEOX}


def is_pretrained(name: str) -> bool:
    """Whether it is written as the name of a pre-trained model."""
    return name.startswith(PREFIX)


@dataclass(frozen=True)
class Pretrained:
    """A folder of a pre-trained model."""

    folder: Path
    sizes: Mapping[str, Any]
    """Fields of our `model` section, and their values."""
    layout: Layout
    _files: Mapping[str, Path]
    """Where each tensor is, by its name there."""

    @classmethod
    def open(cls, name: str) -> "Pretrained":
        """The model that `hf:DIR`, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION` names.

        Raises:
            ConfigError: written otherwise.
            DataError: nothing there, another architecture, or files that are damaged.
        """
        if not is_pretrained(name) or name == PREFIX:
            raise ConfigError(f"init_from = {shown(name)}: write hf: and a folder or a name on the hub, as hf:gpt2")
        folder = Path(name.removeprefix(PREFIX))
        if not folder.is_dir():
            folder = _downloaded(name.removeprefix(PREFIX))
        config = _json(folder / "config.json")
        kind = str(config.get("model_type"))
        if kind not in FIXED:
            raise DataError(
                f"{folder}: model_type = {shown(config.get('model_type'))} in config.json; a run begins from a GPT-2 "
                f"(gpt2), or from what a rotary one is exported as (gpt_neox)"
            )
        for key, allowed in FIXED[kind].items():
            value = config.get(key, ASSUMED.get(kind, {}).get(key, allowed[0]))
            if value not in allowed:
                raise DataError(f"{folder}: {key} = {shown(value)} in config.json, and our GPT-2 has {allowed[0]}")
        cls._check_shape(folder, kind, config)
        names = {**SIZES[kind], "vocab_size": "vocab_size"}
        sizes: dict[str, Any] = {ours: _size(folder, config, theirs) for ours, theirs in names.items()}
        sizes["positions"] = "learned" if kind == "gpt2" else "rotary"
        return cls(folder, sizes, LAYOUTS[kind], _files_of(folder))

    @staticmethod
    def _check_shape(folder: Path, kind: str, config: Mapping[str, Any]) -> None:
        """Raises `DataError` if MLPs are of another width, or angles other ones."""
        width = config.get("n_embd" if kind == "gpt2" else "hidden_size", 0)
        key = "n_inner" if kind == "gpt2" else "intermediate_size"
        if config.get(key) not in (None, 4 * width):
            raise DataError(f"{folder}: {key} = {shown(config.get(key))} in config.json, and our GPT-2 has {4 * width}")
        if kind == "gpt_neox":
            angles = config.get("rope_parameters") or {}
            angles = angles if isinstance(angles, dict) else {}
            part = angles.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
            base = angles.get("rope_theta", config.get("rotary_emb_base", 10_000))
            if part != 1 or base != 10_000 or angles.get("rope_type", "default") != "default":
                raise DataError(f"{folder}: rotary angles in config.json are others than our GPT-2's")

    def check(self, name: str, shape: torch.Size) -> None:
        """Raises `DataError` unless it has the tensor that is ours of that name and shape (of positions, or more)."""
        heads = int(self.sizes["n_head"])
        needed = tuple(self.layout.turned(name, torch.empty(shape, device="meta"), heads).shape)
        with self._opened(name) as (file, theirs):
            found = tuple(file.get_slice(theirs).get_shape())
        if found != needed and not (name == "wpe.weight" and found[0] > needed[0] and found[1:] == needed[1:]):
            raise DataError(f"{self.folder}: {theirs} is of the shape {found}, and {needed} is needed; save it again")

    def fill(self, name: str, tensor: Tensor) -> None:
        """Write the tensor that is ours of that name into `tensor`; of positions the first, as many as it holds.

        Raises `DataError` if it is missing or damaged.
        """
        with self._opened(name) as (file, theirs):
            value = self.layout.turned_back(name, file.get_tensor(theirs), int(self.sizes["n_head"]))
        tensor.copy_(value[: len(tensor)])

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file of our tensor, and its name there."""
        theirs = self._theirs(name)
        if theirs is None:
            raise DataError(
                f"{self.folder}: has no tensor for {name}; save the model again, or begin with plain blocks, as many "
                f"as it has layers"
            )
        try:
            with safe_open(self._files[theirs], framework="pt") as file:
                yield file, theirs
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self._files[theirs]}: {theirs} cannot be read ({error}); save the model again") from None

    def _name(self, name: str) -> str | None:
        """Their name of our tensor."""
        return self.layout.names(int(self.sizes["n_layer"])).get(name)

    def _theirs(self, name: str) -> str | None:
        """Where it is: GPT-2's files on the hub leave out the prefix that the class has."""
        full = self._name(name)
        if full is None:
            return None
        return next((found for found in (full, full.partition(".")[2]) if found in self._files), None)


def _downloaded(name: str) -> Path:
    """The folder of a model on the hub, fetched unless it was before."""
    from huggingface_hub import snapshot_download

    name, _, revision = name.partition("@")
    wanted = ["config.json", "*.safetensors", INDEX, "tokenizer*", "vocab.json", "merges.txt"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises what its transports raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{PREFIX}{name}: no such folder, and it cannot be had from the hub ({reason}); name a folder, or fetch it "
            f"where there is a network"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    with os_errors_named(path):
        content = path.read_bytes()
    with suppress(ValueError):
        found = parse_json(content)
        if isinstance(found, dict):
            return found
    raise DataError(f"{path}: no JSON object; save the model again")


def _size(folder: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or not 0 < value < 2**31:
        raise DataError(f"{folder}: {key} = {shown(value)} in config.json is no size; save the model again")
    return value


def _files_of(folder: Path) -> dict[str, Path]:
    """Each tensor's file."""
    if (folder / INDEX).exists():
        index = _json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(_is_file_name(file) for file in index.values()):
            raise DataError(f"{folder / INDEX}: its weight_map names no files of this folder; save the model again")
        return {str(name): folder / file for name, file in index.items()}
    path = folder / WEIGHTS
    if not path.exists():
        raise DataError(f"{folder}: no {WEIGHTS}; save the model again with `save_pretrained`, which writes one")
    try:
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save the model again") from None


def _is_file_name(name: object) -> bool:
    """Whether it is that of a file right in the folder. (In the hub's cache a file is a link to elsewhere.)"""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and name.isprintable()


def vocabulary_of(folder: Path) -> dict[str, int] | None:
    """The tokens of a folder's tokenizer, as byte-level tokenizers spell them; None if it has none.

    Raises `DataError` if its files are damaged.
    """
    whole, plain = folder / "tokenizer.json", folder / "vocab.json"
    if whole.exists():
        definition = _json(whole)
        model, added = definition.get("model"), definition.get("added_tokens", [])
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, dict):
            return {**vocabulary, **{token["content"]: token["id"] for token in added}}
        raise DataError(f"{whole}: no vocabulary of byte pairs; save the tokenizer again")
    return _json(plain) if plain.exists() else None
