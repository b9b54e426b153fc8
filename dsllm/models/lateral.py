"""A narrow second column beside a frozen first one (Progressive Neural Networks, 1606.04671).

    first column    h_0 ── block 0 ── h_1 ── block 1 ── h_2 ──────────── + ── norm ── head
                     │      ╲           ╲                                │
                   embed   lateral 0   lateral 1                    beta · out
                     │        ╲           ╲                              │
    new column      z_0 ────── + block 0 ─ + block 1 ── z_2 ─────────────┘

Each block of the new column also reads what the first column knows at its depth, through an adapter of rank r, the
paper's U σ(V a h) with a layer norm for its scalar a. Its sum enters the stream through the gate beta, 0 at the start:
the model is the first column's, bit for bit, and beta is the only parameter with a gradient at the first step.
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from dsllm.models.layers import Block, LayerCache, Rotation
from dsllm.section import Section


class LateralConfig(Section):
    """A new column beside the model's own."""

    n_embd: PositiveInt
    """Width of the new column."""
    n_head: PositiveInt
    """Its attention heads."""
    rank: PositiveInt
    """Rank of the adapters that carry the first column's states into it."""
    freeze: bool = True
    """The first column rests, as in the paper; false: all trains."""


class LateralAdapter(nn.Module):
    """From a state of the first column (..., C) to the new column's width (..., c), through a layer of `rank` units."""

    def __init__(self, n_embd: int, rank: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(n_embd)
        self.down = nn.Linear(n_embd, rank)
        self.up = nn.Linear(rank, width)

    def forward(self, state: Tensor) -> Tensor:
        out: Tensor = self.up(F.gelu(self.down(self.norm(state)), approximate="tanh"))
        return out


class ColumnBlock(Block):
    """A block of the new column: z (B, T, c) and the first column's state (B, T, C) at the same depth to (B, T, c)."""

    def __init__(self, config: LateralConfig, n_embd: int, window: int | None = None):
        super().__init__(config.n_embd, config.n_head, window)
        self.lateral = LateralAdapter(n_embd, config.rank, config.n_embd)

    def forward(  # type: ignore[override]
        self,
        z: Tensor,
        state: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        return super().forward(z + self.lateral(state), rotation, mask, cache)


class GatedOutput(nn.Module):
    """What the new column adds to the stream: beta · (W z + b), (B, T, c) to (B, T, C)."""

    def __init__(self, width: int, n_embd: int):
        super().__init__()
        self.projection = nn.Linear(width, n_embd)
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.beta * self.projection(z)
        return out


class Column(nn.Module):
    """The parts of the new column; `Progressive.through_blocks` runs them."""

    def __init__(self, config: LateralConfig, n_embd: int, n_layer: int, window: int | None = None):
        super().__init__()
        self.embed = nn.Linear(n_embd, config.n_embd)
        self.blocks = nn.ModuleList(ColumnBlock(config, n_embd, window) for _ in range(n_layer))
        self.out = GatedOutput(config.n_embd, n_embd)
