"""The levels of a convolution-attention model, without a head: what `conv_attention` explains.

It needs torch alone, and of a configuration the facts by which `ConvAttentionConfig` says its sizes: a model that
leaves the toolkit takes this file along.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsllm.models.layers import Block, LayerCache, Rotation, document_mask, rotary
from dsllm.models.resampling import LevelCache, Merge, Normed, Spread, same_document, unfolded


class Level(NamedTuple):
    """A level in one forward pass."""

    vectors: int
    """Vectors that this pass adds to it."""
    rotation: Rotation
    mask: Tensor | None
    document_ids: Tensor | None
    cache: LevelCache | None


class ConvCache:
    """Keys and values of each attention layer, and what the convolutions and the read-out hold of each level."""

    def __init__(self, config: Any):
        spans, windows = config.spans, config.attention_windows
        self.length = 0
        """Tokens seen."""
        self.layers = [LayerCache(-(-config.context // spans[level]), windows[level]) for _, level in config.runs]
        self.levels = [LevelCache() for _ in spans]

    @property
    def runs(self) -> list[int]:
        """Vectors that each level has computed so far."""
        return [level.seen for level in self.levels]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows (n,) of the batch, each as often as it is named."""
        for layer in self.layers:
            layer.select(rows)
        for level in self.levels:
            level.select(rows)


class Levels(nn.Module):
    """A part of a model that can `run_block`."""

    config: Any
    """With spans, widths, strides, convolution_taps, attention_windows, levels_read, runs, n_embd, n_head, expansion
    and context."""
    blocks: nn.ModuleList

    def make_levels(self, vocab_size: int, blocks: Sequence[Block]) -> None:
        """Make all parameters but the blocks', which are given in the order of execution, before they are filled."""
        sizes = self.config
        widths, windows = sizes.widths, sizes.attention_windows
        self.wte = nn.Embedding(vocab_size, sizes.n_embd)
        self.into = Normed(sizes.n_embd, widths[0])
        self.blocks = nn.ModuleList(blocks)
        self.merges, self.spreads = nn.ModuleList(), nn.ModuleList()
        for level, (stride, taps) in enumerate(zip(sizes.strides, sizes.convolution_taps, strict=True)):
            shape = widths[level], widths[level + 1], sizes.n_head, stride, taps
            self.merges.append(Merge(*shape, sizes.expansion * widths[level + 1], windows[level]))
            self.spreads.append(Spread(*shape, sizes.expansion * widths[level], windows[level]))
        self.reads = nn.ModuleDict({str(level): Normed(widths[level], sizes.n_embd) for level in sizes.levels_read})
        self.norm = nn.LayerNorm(sizes.n_embd)

    def run_block(self, index: int, block: nn.Module, *inputs: Any) -> Any:
        """`block(*inputs)` as the forward pass's block number `index`."""
        raise NotImplementedError

    def through_levels(
        self, input_ids: Tensor, document_ids: Tensor | None = None, cache: ConvCache | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What the levels add up to for each token (B, T, E), and each level's last state."""
        levels = self._levels(input_ids, document_ids, cache)
        x = self.into(self.wte(input_ids))  # (B, T, d_0)
        states: dict[int, Tensor] = {}
        skips: list[Tensor] = []
        coarser: Tensor | None = None  # what the levels within have read out, for each vector of the level of x
        blocks = iter(self.blocks)
        for run, (kind, number) in enumerate(self.config.runs):
            level = levels[number]
            around = level.rotation, level.mask, None if cache is None else cache.layers[run]
            if kind == "block":
                block = next(blocks)
                x = self.run_block(run, block, x, *around) if level.vectors else x
            elif kind == "merge" and level.vectors:
                e, x = self.run_block(run, self.merges[number], x, *around, level.cache, level.document_ids)
                skips.append(e)
            elif kind == "spread" and level.vectors:
                states[number + 1] = x
                coarser = self._held(self._read(number + 1, x, coarser), level, self.config.strides[number])
                x = self.run_block(run, self.spreads[number], skips.pop(), x, *around, level.cache, level.document_ids)
        states[0] = x
        if cache is not None:
            cache.length += input_ids.shape[1]
        return self._read(0, x, coarser), states

    def _levels(self, input_ids: Tensor, document_ids: Tensor | None, cache: ConvCache | None) -> list[Level]:
        past = 0 if cache is None else cache.length
        levels = []
        for number, (span, width) in enumerate(zip(self.config.spans, self.config.widths, strict=True)):
            first, end = -(-past // span), -(-(past + input_ids.shape[1]) // span)
            ids = None if document_ids is None else document_ids[:, ::span]
            rotation = rotary(
                torch.arange(first, end, device=input_ids.device), width // self.config.n_head, self.wte.weight.dtype
            )
            mask = None if ids is None else document_mask(ids)
            held = None if cache is None else cache.levels[number]
            if held is not None:
                held.seen = end
            levels.append(Level(end - first, rotation, mask, ids, held))
        return levels

    def _read(self, level: int, x: Tensor, coarser: Tensor | None) -> Tensor:
        """What this level and those within read out for each of its vectors: (B, n, E)."""
        if level not in self.config.levels_read:
            return x.new_zeros(*x.shape[:2], self.config.n_embd) if coarser is None else coarser
        own: Tensor = self.reads[str(level)](x)
        return own if coarser is None else own + coarser

    def _held(self, read: Tensor, level: Level, stride: int) -> Tensor:
        """`read` (B, n, E) of the next coarser level for each vector of this one: its newest, of the same document."""
        blocks = read[:, :, None].expand(-1, -1, stride, -1)  # (B, n, s, E)
        if level.cache is not None:
            return level.cache.read.follow(blocks, level.cache.seen - level.vectors, level.vectors)
        held = unfolded(blocks, level.vectors)
        return held if level.document_ids is None else held * same_document(level.document_ids, stride)
