"""The learning rate as a pure function of the tokens trained on, so that a run may resume anywhere.

rate                cosine                      rate             warm-up–stable–decay
lr ─      ╭──╮                                  lr ─   ╭───────────────╮
         ╱    ╲___                                    ╱                 ╲
0 ─     ╱         ‾‾── final_lr · lr            0 ─  ╱                   ╲ final_lr · lr
       warm-up          tokens                      warm-up          decay_tokens
"""

import math
from dataclasses import dataclass

from dsllm.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """`lr(tokens)` is the learning rate of the step that ends after `tokens` tokens, so the first is not zero.

    cosine: Loshchilov and Hutter, 1608.03983; warm-up–stable–decay: MiniCPM, 2404.06395, section 4,
    with a linear decay.
    """

    kind: str
    peak: float
    final: float
    """The last rate, as a fraction of the peak."""
    total: int
    warmup: int
    decay: int
    """Length of the decay; all that follows the warm-up for cosine."""

    @classmethod
    def of(cls, train: TrainConfig, tokens_per_step: int) -> "Schedule":
        """The schedule of a run: by default a fiftieth warms up, and with wsd a fifth decays."""
        total = train.steps * tokens_per_step
        warmup = total // 50 if train.warmup_tokens is None else train.warmup_tokens
        rest = max(total - warmup, 0)
        decay = rest
        if train.schedule == "wsd":
            share = int(round(total * train.decay_share, 6))  # a fifth of 10 is 2, in floating point, too
            decay = min(rest, share if train.decay_tokens is None else train.decay_tokens)
        return cls(train.schedule, train.lr, train.final_lr, total, warmup, decay)

    def lr(self, tokens: int) -> float:
        if tokens < self.warmup:
            return self.peak * tokens / self.warmup
        begun = tokens - (self.total - self.decay)
        if begun <= 0 or self.decay == 0:
            return self.peak
        done = min(begun / self.decay, 1.0)
        left = (1 + math.cos(math.pi * done)) / 2 if self.kind == "cosine" else 1 - done
        return self.peak * (self.final + (1 - self.final) * left)

    def decaying(self, tokens: int) -> bool:
        """Whether the rate is in the final decay of warm-up–stable–decay; a cosine has no phase that is one."""
        return self.kind == "wsd" and tokens > self.total - self.decay
