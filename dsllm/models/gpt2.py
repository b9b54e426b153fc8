"""GPT-2 (Radford et al. 2019), with its own learned positions or, by default, rotary ones.

    ids (B, T) → wte (+ wpe) → Block × n_layer → norm → head (tied to wte) → logits (B, T, V)

With learned positions it is the same function as transformers' GPT2LMHeadModel without dropout; see `huggingface.py`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from dsllm.config import ModelConfig
from dsllm.models.head import TiedHead
from dsllm.models.language_model import LanguageModel
from dsllm.models.layers import Block, KVCache, Rotation, document_mask, document_positions, rotary


class GPT2Config(ModelConfig):
    """The `model` section of a run with GPT-2."""

    positions: Literal["rotary", "learned"] = "rotary"
    """How a token knows its place: rotary angles in attention, or GPT-2's learned table of `context` rows."""
    window: PositiveInt | None = None
    """Tokens that a token sees in each layer, itself included; null: all before it."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial matrices; projections into the residual stream get it / √(2 · n_layer)."""

    @property
    def any_length(self) -> bool:
        return self.positions == "rotary"

    def problems(self) -> Iterator[tuple[str, str]]:
        n_embd, n_head = self.n_embd, self.n_head
        # A rotary head turns its channels in pairs.
        unit = 2 * n_head if self.positions == "rotary" else n_head
        below = n_embd // unit * unit
        cure = f"take {below} or {below + unit}" if below else f"take {unit}"
        if n_embd % n_head:
            yield "n_embd", f"not divisible by model.n_head = {n_head}; {cure}"
        elif n_embd % unit:
            yield "n_embd", f"gives heads of odd width {n_embd // n_head}, rotary positions need even ones; {cure}"
        yield from super().problems()


class GPT2(LanguageModel):
    """The decoder-only transformer; raises `ConfigError` if `config.vocab_size` is open."""

    Config: ClassVar[type[GPT2Config]] = GPT2Config
    config: GPT2Config

    def __init__(self, config: GPT2Config):
        super().__init__(config)
        self.wte = nn.Embedding(self.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context, config.n_embd) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(self.new_blocks())
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = TiedHead(self.wte)
        self.initialise()

    def initial(self, name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
        """Section 2.3 of the paper and its code: N(0, init_std), less into the residual stream; biases 0.

        Each of the 2 · n_layer residual additions gets 1 / √(2 · n_layer) of it, so that their sum keeps its size.
        """
        std = self.config.init_std
        if name == "wpe.weight":
            std /= 2
        elif name.endswith(("attention.out.weight", "mlp.down.weight")):
            std /= math.sqrt(2 * self.config.n_layer)
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=std, generator=generator)
        else:
            nn.init.constant_(parameter, float(name.endswith("weight")))  # a norm's gain is 1, a bias 0

    def new_blocks(self) -> list[Block]:
        """The blocks to be, before they are filled."""
        config = self.config
        return [Block(config.n_embd, config.n_head, config.window) for _ in range(config.n_layer)]

    def executed_blocks(self) -> Sequence[Block]:
        """Blocks in the order of their use: here each of them once."""
        return tuple(self.blocks)  # type: ignore[arg-type]

    def hidden(self, input_ids: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        past = 0 if cache is None else cache.length
        positions = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)  # (T,)
        mask = None if document_ids is None else document_mask(document_ids)  # (B, 1, T, T)
        x = self.wte(input_ids)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions if document_ids is None else document_positions(document_ids))
        out: Tensor = self.norm(self.through_blocks(x, positions, mask, cache))
        return out

    def through_blocks(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """The residual stream x (B, T, C) after all blocks. Its tokens stand at `positions` (T,)."""
        rotation = self.rotation(positions, self.config.n_embd // self.config.n_head, x.dtype)
        for index, block in enumerate(self.executed_blocks()):
            layer_cache = None if cache is None else cache.layers[index]
            x = self.run_block(index, block, x, rotation, mask, layer_cache)
        return x

    def rotation(self, positions: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation | None:
        """The angles of rotary positions; they are relative, so that documents need no count of their own."""
        return rotary(positions, head_dim, dtype) if self.wpe is None else None

    def new_cache(self) -> KVCache:
        return KVCache(self.config.n_layer, self.config.context, self.config.window)

    def rewind(self, cache: KVCache, length: int) -> bool:
        return cache.rewind(length)

    def forward_flops_per_token(self, context: int) -> int:
        """2 · N + 4 · n_layer · n_embd · context; N: 12 n_embd² of each layer, and vocab_size · n_embd of the head.

        Times three this is the 6 · N + 12 · n_layer · n_embd · T of PaLM's appendix B (2204.02311). A window that is
        shorter than the context stands for it.
        """
        c = self.config
        context = min(context, c.window or context)
        per_layer = (3 + 1 + 4 + 4) * c.n_embd**2  # qkv, out, up, down
        return 2 * (c.n_layer * per_layer + self.vocab_size * c.n_embd) + 4 * c.n_layer * c.n_embd * context
