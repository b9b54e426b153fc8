"""Gates by which new blocks come in gradually (Gradual DropIn, 1511.06951).

    GateConfig(blocks=[3, 4, 5], start=1000, steps=500)

At step 1000 the blocks 3, 4 and 5 are bypassed and the model is the one without them; at step 1250 each takes the
stream half of the way, x + 0.5 · (block(x) - x); from step 1500 on they are blocks like all others. A gate of kind
`channel` is open or shut for each channel of the stream, anew at each step, with the same mean.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from dsllm.models.language_model import seeded
from dsllm.section import Section


class GateConfig(Section):
    """Blocks that come in gradually, and when."""

    blocks: list[NonNegativeInt]
    """The gated blocks, counted from 0 as the model keeps them, not as it executes them."""
    start: NonNegativeInt = 0
    """The optimizer step at which they are still bypassed."""
    steps: PositiveInt = 500
    """Optimizer steps until they are fully open."""
    kind: Literal["scalar", "channel"] = "scalar"
    """How a half-open gate mixes: each channel by half, or half of the channels, drawn anew at each step."""
    seed: NonNegativeInt = 0
    """Of the channels drawn."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            yield "blocks", "name each gated block once, at least one"

    def opening(self, step: int) -> float:
        """How far the gates are open at an optimizer step: 0 up to `start`, 1 from `start + steps` on."""
        return min(max((step - self.start) / self.steps, 0.0), 1.0)

    def mask(self, step: int, block: int, channels: int) -> Tensor:
        """Open channels (channels,), 1.0 or 0.0, of a block's gate at a step; the same wherever it is asked for."""
        drawn = torch.rand(channels, generator=seeded(self.seed, f"{step} {block}"), device="cpu")
        return (drawn < self.opening(step)).float()


class Gates:
    """The gates of a model's executed blocks, as far as they are open at the step that was set last.

    `executed` names the block of each run, None where it is no block; `widths` the channels of each block's stream.
    """

    def __init__(self, config: GateConfig, executed: Sequence[int | None], widths: Sequence[int]):
        self.config, self.widths = config, widths
        self.block_of = {index: block for index, block in enumerate(executed) if block in config.blocks}
        self.set_step(config.start)

    def set_step(self, step: int) -> None:
        """Open the gates as far as they are at an optimizer step."""
        self.opening = self.config.opening(step)
        blocks = self.config.blocks if self.config.kind == "channel" else ()
        self.masks = {block: self.config.mask(step, block, self.widths[block]) for block in blocks}

    def mix(self, index: int, before: Tensor, after: Tensor, training: bool) -> Tensor:
        """The stream (B, T, C) behind the run `index`, which takes `before` to `after`.

        Exactly `before` where the gate is shut, and `after` where it is open. Channels are drawn in training only.
        """
        block = self.block_of.get(index)
        if block is None:
            return after
        mask = self.masks.get(block) if training else None
        if mask is None:
            return torch.lerp(before, after, self.opening)
        return torch.lerp(before, after, mask.to(before))
