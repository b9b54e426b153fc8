"""Convolution attention: tokens merged by causal convolutions, so that attention reaches further for less.

    strides (4, 4)      B batch · T tokens · E n_embd

    ids ▶ wte ▶ into ▶ level 0, T vectors          ──────▶ + attention ▶ level 0 ▶─┐
                         │ Merge                       ▲ Spread        │           │ read out, summed, norm
                         ▼                             │               ▼           ▼
                       level 1, ⌈T/4⌉ vectors ─▶ … ─▶ level 1 ─────────────────▶ head (tied to wte)
                         ▼                             ▲
                       level 2, ⌈T/16⌉ ─────▶ blocks ──┘ ──────────────────────▶

Outer levels are long and narrow, inner ones short and wide. After the decoder each level adds to what the head reads,
its newest vector for every token. With no strides it is a plain transformer: the control.

**Why it is causal.** Level l has strides' product S_l = s_1 ⋯ s_l; the *clock* of its vector g is the token g · S_l.
Invariant: vector g of level l depends on tokens up to its clock, 0 … g · S_l, only. Pointwise work and sums of vectors
of one index keep it. So does causal attention: j ≤ g has an earlier clock. Merge reads g·s − j, j ≥ 0, of level l:
clocks up to g·s·S_l, the clock of g on level l + 1. Spread, for vector i of level l, reads ⌊i/s⌋ − j of level l + 1:
clocks up to ⌊i/s⌋·s·S_l ≤ i·S_l. The read-out at token t reads ⌊t/S_l⌋, clock at most t. By induction logits[t]
depends on tokens 0 … t only.

Level l moves on at every S_l-th token; between them its newest vector stands. So a generated token runs only the levels
whose clock it is, and a prefill, one parallel forward, fills the same state.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dsllm.models.conv_attention_config import ConvAttentionConfig
from dsllm.models.growable import Growable
from dsllm.models.head import TiedHead
from dsllm.models.layers import Block, LayerCache, Rotation, document_mask, rotary
from dsllm.models.lora import initial_lora, is_adapter
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

    def __init__(self, config: ConvAttentionConfig):
        spans, windows = config.spans, config.attention_windows
        self.length = 0
        """Tokens seen."""
        self.layers = [LayerCache(-(-config.context // spans[level]), windows[level]) for _, level in config.runs]
        self.levels = [LevelCache() for _ in spans]

    @property
    def runs(self) -> list[int]:
        """Vectors that each level has computed so far."""
        return [level.seen for level in self.levels]


class ConvAttention(Growable):
    """The model; raises `ConfigError` if `config.vocab_size` is open."""

    Config: ClassVar[type[ConvAttentionConfig]] = ConvAttentionConfig
    config: ConvAttentionConfig

    def __init__(self, config: ConvAttentionConfig):
        super().__init__(config)
        widths, windows = config.widths, config.attention_windows
        self.wte = nn.Embedding(self.vocab_size, config.n_embd)
        self.into = Normed(config.n_embd, widths[0])
        self.blocks = nn.ModuleList(self.new_blocks())
        self.merges, self.spreads = nn.ModuleList(), nn.ModuleList()
        for level, (stride, taps) in enumerate(zip(config.strides, config.convolution_taps, strict=True)):
            sizes = widths[level], widths[level + 1], config.n_head, stride, taps
            self.merges.append(Merge(*sizes, config.expansion * widths[level + 1], windows[level]))
            self.spreads.append(Spread(*sizes, config.expansion * widths[level], windows[level]))
        self.reads = nn.ModuleDict({str(level): Normed(widths[level], config.n_embd) for level in config.levels_read})
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = TiedHead(self.wte)
        self.initialise()
        self.rest()

    @property
    def spans(self) -> tuple[int, ...]:
        return self.config.spans

    @property
    def run_levels(self) -> tuple[int, ...]:
        return tuple(level for _, level in self.config.runs)

    def new_blocks(self) -> list[Block]:
        """The blocks to be in the order of execution, before they are filled."""
        widths, windows = self.config.widths, self.config.attention_windows
        levels = [level for kind, level in self.config.runs if kind == "block"]
        return [self.adapted(Block(widths[level], self.config.n_head, windows[level])) for level in levels]

    def initial(self, name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
        """Matrices N(0, 1 / (3 · fan-in)), less into the residual stream; embeddings N(0, 0.02 · √(768 / E)).

        What coarser levels add, to a finer one and to the read-out, is zero at first: the model begins as its level 0.
        Level 0 begins at unit size, as embeddings are normalised on their way in: as small as they are, they drowned in
        what the first updates of the coarse levels add.
        """
        module, _, kind = name.rpartition(".")
        if is_adapter(name):
            initial_lora(name, parameter, generator)
            return
        if parameter.dim() < 2:
            nn.init.constant_(parameter, float(kind == "weight"))  # a norm's gain is 1, a bias 0
            return
        coarse_read = module.startswith("reads.") and int(module.split(".")[1]) > self.config.levels_read[0]
        if coarse_read or (module.startswith("spreads.") and module.endswith(".out") and "attention" not in module):
            nn.init.zeros_(parameter)
            return
        std = 1 / math.sqrt(3 * parameter.shape[1])
        if name == "wte.weight":
            std = 0.02 * math.sqrt(768 / self.config.n_embd)
        elif module == "into.out":
            std = 1 / math.sqrt(parameter.shape[1])
        elif module.endswith(("attention.out", "mlp.down")) or (
            module.startswith("merges.") and module.endswith("out")
        ):
            additions = sum(2 if what == "block" else 1 for what, _ in self.config.runs) + 2 * len(self.config.strides)
            std /= math.sqrt(2 * additions)
        nn.init.normal_(parameter, std=std, generator=generator)

    def hidden(self, input_ids: Tensor, document_ids: Tensor | None = None, cache: ConvCache | None = None) -> Tensor:
        out: Tensor = self.norm(self._through(input_ids, document_ids, cache)[0])
        return out

    def vectors(self, input_ids: Tensor, level: int = -1) -> Tensor:
        """States (B, ceil(T / spans[level]), width) of a level behind its last block."""
        return self._through(input_ids)[1][level % len(self.spans)]

    def new_cache(self) -> ConvCache:
        return ConvCache(self.config)

    def _through(
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
        for number, (span, width) in enumerate(zip(self.spans, self.config.widths, strict=True)):
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

    def forward_flops_per_token(self, context: int) -> int:
        """Products of all levels, each as often as it runs: n_l = ceil(context / S_l) vectors in `context` tokens.

        Per vector of level l, d wide, next to one of width c, hidden width of the convolutions m times what they write:
        a block 24 d² + 4 d n_l, the attention of a Merge or Spread 8 d² + 4 d n_l, the read-out 2 d E. Per vector of
        level l + 1: a Merge 2 (k d + c) m c, a Spread 2 (k c + s d) m d. And the way in and the head, 2 E (d_0 + V).
        A window that is shorter than n_l stands for it in attention. Adapters come on top.
        """
        c, total = self.config, self._outside_flops(context)
        for kind, level in c.runs:
            d, n, window = c.widths[level], -(-context // c.spans[level]), c.attention_windows[level]
            total += n * (4 * d * min(n, window or n) + (24 * d**2 if kind == "block" else 0))
        return round(total / context) + self.adapter_flops_per_token(context)

    def outside_flops_per_token(self, context: int) -> int:
        return round(self._outside_flops(context) / context)

    def _outside_flops(self, context: int) -> int:
        """Forward, of a whole sequence, by all weights but the blocks'."""
        c = self.config
        counts = [-(-context // span) for span in c.spans]
        total = sum(counts[level] * 2 * c.widths[level] * c.n_embd for level in c.levels_read)
        for level, (stride, taps) in enumerate(zip(c.strides, c.convolution_taps, strict=True)):
            d, wide = c.widths[level : level + 2]
            merge, spread = (taps * d + wide) * wide, (taps * wide + stride * d) * d
            total += 2 * counts[level] * 8 * d**2 + counts[level + 1] * 2 * c.expansion * (merge + spread)
        return total + context * 2 * c.n_embd * (c.widths[0] + self.vocab_size)
