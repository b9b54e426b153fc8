"""What may reach what in a convolution-attention model, from the index formulas of its design alone: gate G0.

Boolean matrices of one row per vector and one column per token. With stride 2, two taps and attention that sees nothing
else, the tokens 0 … 4 reach level 1 so:

    vector 0, clock 0    1 0 0 0 0      token 0, and zero for what lies before it
    vector 1, clock 2    0 1 1 0 0      tokens 2 and 1: back from its clock
    vector 2, clock 4    0 0 0 1 1

Unshifted windows have 1 1 0 0 0, 0 0 1 1 0 and 0 0 0 0 1: vector 0 stands at clock 0 and has seen token 1.
"""

import math
from collections.abc import Callable

import torch

Indices = Callable[[int, int, int], range]


def taken_down(g: int, s: int, k: int) -> range:
    """What vector g of the level above is made of: g·s - j for j < k."""
    return range(g * s - k + 1, g * s + 1)


def taken_up(i: int, s: int, k: int) -> range:
    """What vector i of the level below gets: ⌊i / s⌋ - j for j < k / s."""
    return range(i // s - k // s + 1, i // s + 1)


def held(t: int, span: int) -> int:
    """What the logits of token t read of a level whose vectors stand for `span` tokens: ⌊t / span⌋."""
    return t // span


def matrix(rows: int, columns: int, taken: Callable[[int], range]) -> torch.Tensor:
    """True where row i takes column j; indices outside read zero and reach nothing."""
    reached = torch.zeros(rows, columns, dtype=torch.bool)
    for i in range(rows):
        for j in taken(i):
            if 0 <= j < columns:
                reached[i, j] = True
    return reached


def through(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """What `first` reaches by `second`."""
    return (first.double() @ second.double()) > 0


def reach(
    c, T: int, down: Indices = taken_down, up: Indices = taken_up, read: Callable[[int, int], int] = held
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What reaches the states h of each level, (n, T) each, and the logits, (T, T). c has the fields of the section."""
    strides, inner = c.strides, len(c.strides)
    taps, windows = c.taps or strides, c.windows or [None] * (inner + 1)
    spans = [math.prod(strides[:level]) for level in range(inner + 1)]
    n = [-(-T // span) for span in spans]

    def attended(x: torch.Tensor, level: int, times: int) -> torch.Tensor:
        window = windows[level] or n[level]
        sees = matrix(n[level], n[level], lambda i: range(i - window + 1, i + 1))
        for _ in range(times):
            x = through(sees, x)
        return x

    x, skips = torch.eye(T, dtype=torch.bool), []
    for level, (s, k) in enumerate(zip(strides, taps, strict=True)):
        skips.append(attended(x, level, c.encoder[level] + 1))  # its blocks, then the attention of the down-block
        x = through(matrix(n[level + 1], n[level], lambda g, s=s, k=k: down(g, s, k)), skips[level])
    h = [attended(x, inner, c.middle)]
    for level in reversed(range(inner)):
        s, k = strides[level], taps[level]
        x = skips[level] | through(matrix(n[level], n[level + 1], lambda i, s=s, k=k: up(i, s, k)), h[0])
        h.insert(0, attended(x, level, 1 + c.decoder[level]))
    logits = torch.zeros(T, T, dtype=torch.bool)
    for level in range(inner + 1) if c.read_out is None else c.read_out:
        newest = [read(t, spans[level]) for t in range(T)]
        logits |= through(matrix(T, n[level], lambda t, newest=newest: range(newest[t], newest[t] + 1)), h[level])
    return h, logits


def gate_0(c, T: int, **formulas: Callable) -> None:
    """Lower triangular, at every level by its clock."""
    h, logits = reach(c, T, **formulas)
    for level, reached in enumerate(h):
        clocks = torch.arange(len(reached)) * math.prod(c.strides[:level])
        assert not (reached & (torch.arange(T) > clocks[:, None])).any(), f"level {level} has seen past its clock"
    assert not logits.triu(1).any(), "a token has reached logits before it"
