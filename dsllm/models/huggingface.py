"""GPT-2's weights under the names that Hugging Face transformers gives them, and back.

    blocks.0.attention.qkv.weight (3C, C)
        <->  transformer.h.0.attn.c_attn.weight (C, 3C)              GPT2LMHeadModel
        <->  gpt_neox.layers.0.attention.query_key_value.weight      GPTNeoXForCausalLM

With learned positions our GPT-2 is transformers' GPT-2, which keeps the four matrices of a block as OpenAI's code did,
input first. With rotary ones it is its GPT-NeoX without parallel residuals, whose fused matrix has q, k and v head by
head, and not one below the other. With a window as well it is its Starcoder2, where q, k and v have matrices of their
own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dsllm.errors import ConfigError
from dsllm.models.gpt2 import GPT2Config

MATRICES = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
"""A block's linear maps."""


@dataclass(frozen=True)
class Layout:
    """Where our tensors are in a class of transformers, by their names there."""

    architecture: str
    """The class."""
    outside: Mapping[str, str]
    """Tensors that are in no block."""
    block: str
    """What the names of a block's tensors begin with."""
    parts: Mapping[str, str]
    """Modules of a block."""
    transposed: bool
    """Matrices are input first."""
    by_head: bool
    """Rows of the fused matrix are q, k, v of the first head, then of the second."""

    def names(self, n_layer: int) -> dict[str, str]:
        """Ours to theirs, of a model without its head, which is tied to the embedding."""
        names = dict(self.outside)
        for layer in range(n_layer):
            for ours, theirs in self.parts.items():
                for kind in ("weight", "bias"):
                    names[f"blocks.{layer}.{ours}.{kind}"] = f"{self.block.format(layer)}.{theirs}.{kind}"
        return names

    def turned(self, ours: str, tensor: Tensor, n_head: int) -> Tensor:
        """Our tensor of that name as theirs; shared where it is the same."""
        if self.by_head and ".attention.qkv." in ours:
            return tensor.unflatten(0, (3, n_head, -1)).transpose(0, 1).flatten(0, 2).contiguous()
        return tensor.t().contiguous() if self.transposed and _is_matrix(ours) else tensor

    def turned_back(self, ours: str, tensor: Tensor, n_head: int) -> Tensor:
        """The inverse of `turned`."""
        if self.by_head and ".attention.qkv." in ours:
            return tensor.unflatten(0, (n_head, 3, -1)).transpose(0, 1).flatten(0, 2).contiguous()
        return tensor.t().contiguous() if self.transposed and _is_matrix(ours) else tensor


def _is_matrix(ours: str) -> bool:
    return any(ours.endswith(f".{name}.weight") for name in MATRICES)


GPT2 = Layout(
    architecture="GPT2LMHeadModel",
    outside={
        "wte.weight": "transformer.wte.weight",
        "wpe.weight": "transformer.wpe.weight",
        "norm.weight": "transformer.ln_f.weight",
        "norm.bias": "transformer.ln_f.bias",
    },
    block="transformer.h.{}",
    parts={
        "norm_1": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "norm_2": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    },
    transposed=True,
    by_head=False,
)
NEOX = Layout(
    architecture="GPTNeoXForCausalLM",
    outside={
        "wte.weight": "gpt_neox.embed_in.weight",
        "norm.weight": "gpt_neox.final_layer_norm.weight",
        "norm.bias": "gpt_neox.final_layer_norm.bias",
    },
    block="gpt_neox.layers.{}",
    parts={
        "norm_1": "input_layernorm",
        "attention.qkv": "attention.query_key_value",
        "attention.out": "attention.dense",
        "norm_2": "post_attention_layernorm",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
    },
    transposed=False,
    by_head=True,
)


STARCODER2 = Layout(
    architecture="Starcoder2ForCausalLM",
    outside={
        "wte.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "norm.bias": "model.norm.bias",
    },
    block="model.layers.{}",
    parts={
        "norm_1": "input_layernorm",
        "attention.out": "self_attn.o_proj",
        "norm_2": "post_attention_layernorm",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    },
    transposed=False,
    by_head=False,
)
"""But for `attention.qkv`, whose thirds are THIRDS there."""
THIRDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def layout_of(config: GPT2Config) -> Layout:
    """The layout of a model; raises `ConfigError` for a window, which neither class has."""
    if config.window is not None:
        raise ConfigError(
            f"model.window = {config.window}: GPT-2 and GPT-NeoX in transformers see all tokens; "
            "train with model.window = null to exchange weights with them"
        )
    return GPT2 if config.positions == "learned" else NEOX


def starcoder2_config(config: GPT2Config) -> dict[str, Any]:
    """Arguments of transformers' Starcoder2Config for a model with rotary positions and a window.

    Raises `ConfigError` for learned positions.
    """
    if config.positions == "learned":
        raise ConfigError(
            f"model.window = {config.window}: no class of transformers has a window and learned positions; train with "
            f"model.positions = rotary, or model.window = null"
        )
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "intermediate_size": 4 * config.n_embd,
        "hidden_act": "gelu_new",
        "sliding_window": config.window,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": True,
    }


def huggingface_config(config: GPT2Config) -> dict[str, Any]:
    """Arguments of transformers' GPT2Config or GPTNeoXConfig for the same function, dropout off.

    Raises `ConfigError` for a window.
    """
    if layout_of(config) is NEOX:
        return {
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context,
            "hidden_size": config.n_embd,
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head,
            "intermediate_size": 4 * config.n_embd,
            "hidden_act": "gelu_new",
            "use_parallel_residual": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
            "tie_word_embeddings": True,
        }
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


def to_huggingface(weights: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """A state dict of our GPT2 as one of the class of its layout, without the tied head."""
    layout = layout_of(config)
    names = layout.names(config.n_layer)
    return {theirs: layout.turned(ours, weights[ours], config.n_head) for ours, theirs in names.items()}


def from_huggingface(weights: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`; raises KeyError if a tensor is missing."""
    layout = layout_of(config)
    names = layout.names(config.n_layer)
    return {ours: layout.turned_back(ours, weights[theirs], config.n_head) for ours, theirs in names.items()}
