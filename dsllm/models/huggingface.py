"""GPT-2's weights under the names that Hugging Face transformers gives them, and back.

    blocks.0.attention.qkv.weight (3C, C)   <->   transformer.h.0.attn.c_attn.weight (C, 3C)

transformers keeps these four matrices of a block as OpenAI's code did, input first; ours are torch's, output first.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsllm.errors import ConfigError
from dsllm.models.gpt2 import GPT2Config

OUTSIDE = {
    "wte.weight": "transformer.wte.weight",
    "wpe.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
NORMS = {"norm_1": "ln_1", "norm_2": "ln_2"}
TRANSPOSED = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def huggingface_config(config: GPT2Config) -> dict[str, Any]:
    """Arguments of transformers' GPT2Config for the same function, dropout off.

    Raises `ConfigError` for rotary positions or a window, which its GPT-2 does not have.
    """
    if config.positions != "learned":
        raise ConfigError(
            f"model.positions = {config.positions}: GPT-2 in transformers has learned positions only; "
            "train with model.positions = learned to exchange weights with it"
        )
    if config.window is not None:
        raise ConfigError(
            f"model.window = {config.window}: GPT-2 in transformers sees all tokens; "
            "train with model.window = null to exchange weights with it"
        )
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
    }


def to_huggingface(weights: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """A state dict of our GPT2 as one of GPT2LMHeadModel. Tensors are shared where their layout is the same."""
    return {theirs: _turned(ours, weights[ours]) for ours, theirs in _names(n_layer).items()}


def from_huggingface(weights: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """A state dict of GPT2LMHeadModel as one of our GPT2 with learned positions; raises KeyError if one is missing."""
    return {ours: _turned(ours, weights[theirs]) for ours, theirs in _names(n_layer).items()}


def _names(n_layer: int) -> dict[str, str]:
    names = dict(OUTSIDE)
    for layer in range(n_layer):
        for ours, theirs in (NORMS | TRANSPOSED).items():
            for kind in ("weight", "bias"):
                names[f"blocks.{layer}.{ours}.{kind}"] = f"transformer.h.{layer}.{theirs}.{kind}"
    return names


def _turned(ours: str, tensor: Tensor) -> Tensor:
    matrix = any(ours.endswith(f"{name}.weight") for name in TRANSPOSED)
    return tensor.t().contiguous() if matrix else tensor
