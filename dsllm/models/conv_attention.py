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
from typing import ClassVar

import torch
from torch import Tensor, nn

from dsllm.models.conv_attention_config import ConvAttentionConfig
from dsllm.models.growable import Growable
from dsllm.models.head import TiedHead
from dsllm.models.layers import Block
from dsllm.models.levels import ConvCache, Levels
from dsllm.models.lora import initial_lora, is_adapter


class ConvAttention(Growable, Levels):
    """The model; raises `ConfigError` if `config.vocab_size` is open."""

    Config: ClassVar[type[ConvAttentionConfig]] = ConvAttentionConfig
    config: ConvAttentionConfig

    def __init__(self, config: ConvAttentionConfig):
        super().__init__(config)
        self.make_levels(self.vocab_size, self.new_blocks())
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
        out: Tensor = self.norm(self.through_levels(input_ids, document_ids, cache)[0])
        return out

    def vectors(self, input_ids: Tensor, level: int = -1) -> Tensor:
        """States (B, ceil(T / spans[level]), width) of a level behind its last block."""
        return self.through_levels(input_ids)[1][level % len(self.spans)]

    def new_cache(self) -> ConvCache:
        return ConvCache(self.config)

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
