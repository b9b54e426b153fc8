"""What a settled model is to transformers: a class, its configuration, and tensors by the names that it has there.

gpt2, progressive, learned positions     GPT2LMHeadModel            a block that is used four times is four layers
gpt2, progressive, rotary positions      GPTNeoXForCausalLM         with a window: Starcoder2ForCausalLM
conv_attention                           its own class, whose code goes along in the folder
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsllm.errors import ConfigError
from dsllm.exchange import code
from dsllm.exchange.libraries import transformers
from dsllm.exchange.settled import Settled
from dsllm.models.conv_attention import ConvAttention
from dsllm.models.conv_attention_config import ConvAttentionConfig
from dsllm.models.gpt2 import GPT2Config
from dsllm.models.huggingface import GPT2, STARCODER2, THIRDS, huggingface_config, layout_of, starcoder2_config
from dsllm.models.progressive import Progressive, ProgressiveConfig
from dsllm.registry import MODELS


@dataclass(frozen=True)
class Form:
    """A settled model as one of transformers."""

    architecture: str
    """The class."""
    config: Any
    """Of transformers."""
    shapes: Mapping[str, torch.Size]
    """Of all tensors, by their names there."""
    value: Callable[[str], Tensor]
    """Gives one of them, in fp32."""
    module: Callable[[int, str], str]
    """Names the linear map `part` of our block of an executed layer."""
    rows: Callable[[str, Tensor], Tensor] = lambda part, tensor: tensor
    """Puts the rows of a tensor (out, …) of the linear map `part` into the order that they have there."""
    fan_in_fan_out: bool = False
    """Matrices are input first."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Python files that belong into the folder."""


def form_of(settled: Settled, path: Path) -> Form:
    """The form of the settled model of the checkpoint at `path`; raises `ConfigError` if it has none."""
    if MODELS[settled.section.name] not in (Progressive, ConvAttention):  # a subclass may compute what it likes
        raise ConfigError(f"{path}: model.name = {settled.section.name}: there is no form of it for transformers")
    if isinstance(settled.section, ProgressiveConfig):
        if settled.section.lateral is not None:
            raise ConfigError(f"{path}: a model with a second column (model.lateral) has no form as plain blocks")
        return _plain(settled, settled.section)
    assert isinstance(settled.section, ConvAttentionConfig)
    return _levels(settled, settled.section)


def _plain(settled: Settled, section: ProgressiveConfig) -> Form:
    fields = {key: value for key, value in section.model_dump().items() if key in GPT2Config.model_fields}
    plain = GPT2Config(**{**fields, "name": "gpt2"})
    if plain.window is not None:
        return _windowed(settled, section, plain)
    layout, heads = layout_of(plain), section.n_head
    ours = {theirs: name for name, theirs in layout.names(section.n_layer).items()}

    def turned(name: str, tensor: Tensor) -> Tensor:
        return layout.turned(name, tensor, heads)

    def shape(name: str) -> torch.Size:
        return turned(name, torch.empty(settled.shapes[_origin(section, name)], device="meta")).shape

    of = transformers().GPT2Config if layout is GPT2 else transformers().GPTNeoXConfig
    return Form(
        architecture=layout.architecture,
        config=of(**huggingface_config(plain)),
        shapes={theirs: shape(name) for theirs, name in ours.items()},
        value=lambda theirs: turned(ours[theirs], settled[_origin(section, ours[theirs])]),
        module=lambda layer, part: f"{layout.block.format(layer)}.{layout.parts[part]}",
        rows=lambda part, tensor: turned(f".{part}.", tensor),
        fan_in_fan_out=layout.transposed,
    )


def _windowed(settled: Settled, section: ProgressiveConfig, plain: GPT2Config) -> Form:
    config = transformers().Starcoder2Config(**starcoder2_config(plain))
    whole = STARCODER2.names(section.n_layer).items()
    places: dict[str, tuple[str, int | None]] = {theirs: (ours, None) for ours, theirs in whole}
    for layer in range(section.n_layer):
        for third, theirs in enumerate(THIRDS):
            for kind in ("weight", "bias"):
                ours = f"blocks.{layer}.attention.qkv.{kind}"
                places[f"{STARCODER2.block.format(layer)}.{theirs}.{kind}"] = ours, third

    def piece(theirs: str, tensor: Tensor) -> Tensor:
        third = places[theirs][1]
        return tensor if third is None else tensor.chunk(3)[third].contiguous()

    def module(layer: int, part: str) -> str:
        raise ConfigError(
            f"model.window = {plain.window}: its adapters do not go to peft; export the run with --format hf, which "
            f"merges them"
        )

    names = {theirs: _origin(section, ours) for theirs, (ours, _) in places.items()}
    return Form(
        architecture=STARCODER2.architecture,
        config=config,
        shapes={t: piece(t, torch.empty(settled.shapes[name], device="meta")).shape for t, name in names.items()},
        value=lambda theirs: piece(theirs, settled[names[theirs]]),
        module=module,
    )


def _origin(section: ProgressiveConfig, name: str) -> str:
    """The tensor of our model, by its distinct blocks, that is `name` in one of executed blocks."""
    if not name.startswith("blocks."):
        return name
    _, layer, within = name.split(".", 2)
    return f"blocks.{section.executed[int(layer)]}.{within}"


def _levels(settled: Settled, section: ConvAttentionConfig) -> Form:
    from dsllm.exchange.configuration_conv_attention import ConvAttentionConfig as Configuration

    facts = ("vocab_size", "n_embd", "n_head", "context", "expansion", "strides", "widths", "spans", "convolution_taps")
    more = ("attention_windows", "levels_read", "runs")
    config = Configuration(**{name: getattr(section, name) for name in (*facts, *more)})
    config.auto_map = {
        "AutoConfig": f"{code.CONFIGURATION}.ConvAttentionConfig",
        "AutoModelForCausalLM": f"{code.MODELING}.ConvAttentionForCausalLM",
    }
    return Form(
        architecture="ConvAttentionForCausalLM",
        config=config,
        shapes={name: torch.Size(shape) for name, shape in settled.shapes.items()},
        value=settled.__getitem__,
        module=lambda layer, part: f"blocks.{layer}.{part}",
        code=code.files(),
    )
