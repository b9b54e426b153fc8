"""How a convolution-attention model passes from one level to the next coarser one, and back.

    stride 4, taps 4                  x0  x1  x2  x3  x4  x5  x6  x7  x8
    Merge: window g ends at g·4      [x0]        [x1 … x4]      [x5 … x8]
                                      y0              y1              y2      y1 knows x0 … x4, and stands at token 4
    Spread: block g begins at g·4    [u0  u1  u2  u3][u4  u5  u6  u7][u8      u4 … u7 come from y1

Nothing is delivered before its newest token, and no length is needed: any number of vectors works, and a step that
brings one more continues from a `LevelCache`. B batch · n vectors · s stride · k taps · C width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsllm.models.layers import Attention, LayerCache, Rotation


class Held:
    """What the newest vector of a coarser level gives to the finer one, for the tokens that come before its next."""

    def __init__(self) -> None:
        self.block: Tensor | None = None

    def follow(self, blocks: Tensor, first: int, count: int) -> Tensor:
        """As `unfolded(blocks, count)`, but the finer vectors begin at `first`, and `blocks` follow the one held."""
        before = blocks.new_zeros(blocks.shape[0], 1, *blocks.shape[2:]) if self.block is None else self.block
        blocks = torch.cat((before, blocks), dim=1)
        self.block = blocks[:, -1:].clone()  # a view would keep all of them
        stride = blocks.shape[2]
        start = stride - -first % stride  # the held block begins at the last multiple of the stride before `first`
        return blocks.flatten(1, 2)[:, start : start + count]


class LevelCache:
    """What a level keeps between steps, beside keys and values."""

    def __init__(self) -> None:
        self.seen = 0
        """Vectors of this level so far."""
        self.inputs: Tensor | None = None
        """The newest k - 1 inputs of the convolution to the next level."""
        self.outputs: Tensor | None = None
        """The newest k / s - 1 vectors of the next level."""
        self.spread = Held()
        self.read = Held()

    def select(self, rows: Tensor) -> None:
        """Go on with these rows (n,) of the batch."""
        self.inputs, self.outputs, self.spread.block, self.read.block = (
            None if part is None else part.index_select(0, rows)
            for part in (self.inputs, self.outputs, self.spread.block, self.read.block)
        )


def unfolded(blocks: Tensor, count: int) -> Tensor:
    """Blocks (B, n, s, C) of s vectors each as `count` vectors, cut on the right: (B, count, C)."""
    return blocks.flatten(1, 2)[:, :count]


def sliding(x: Tensor, taps: int, stride: int) -> Tensor:
    """Windows of x (B, (n - 1) · stride + taps, C), one each stride: (B, n, taps, C). taps is a multiple of stride."""
    n, parts = (x.shape[1] - taps) // stride + 1, taps // stride
    pieces = x[:, : (n + parts - 1) * stride].unflatten(1, (n + parts - 1, stride))  # (B, n + parts - 1, stride, C)
    return torch.cat([pieces[:, part : part + n] for part in range(parts)], dim=2)


class Merge(nn.Module):
    """The down-block: attention, and in the MLP's place a strided causal convolution.

        e    = x + Attention(norm_1(x))
        y[g] = W_o · GELU(b + Σ_{j<k} W_j · norm_2(e)[g·s - j]) + e[g·s], with channels of zeros added

    Inputs before the beginning, and those of another document than the clock's, count as zero.
    """

    def __init__(
        self, width: int, coarse: int, n_head: int, stride: int, taps: int, hidden: int, window: int | None = None
    ):
        super().__init__()
        self.stride, self.taps, self.added = stride, taps, coarse - width
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, n_head, window)
        self.norm_2 = nn.LayerNorm(width)
        self.inner = nn.Linear(taps * width, hidden)
        self.out = nn.Linear(hidden, coarse)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        level: LevelCache | None = None,
        document_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x (B, n, width) to the same level's e (B, n, width), and y of the coarser one (B, ceil(n / s), coarse).

        With caches x continues what they have seen, and y is what it adds: perhaps nothing.
        """
        e = x + self.attention(self.norm_1(x), rotation, mask, cache)
        # The first multiple of the stride among the new vectors: level.seen counts them already.
        first = 0 if level is None else -(level.seen - x.shape[1]) % self.stride
        windows = self.windows(self._with_past(self.norm_2(e), level), first)  # (B, n', k, width)
        if document_ids is not None:
            ids = sliding(F.pad(document_ids, (self.taps - 1, 0), value=-1)[..., None], self.taps, self.stride)
            windows = windows * (ids == ids[:, :, -1:])
        y = self.out(F.gelu(self.inner(windows.flatten(2)), approximate="tanh"))
        return e, y + F.pad(e[:, first :: self.stride], (0, self.added))

    def windows(self, x: Tensor, first: int) -> Tensor:
        """Windows (B, n', k, C) that end at the vectors first, first + s …; x begins with k - 1 vectors of the past."""
        return sliding(x[:, first:], self.taps, self.stride)

    def _with_past(self, x: Tensor, level: LevelCache | None) -> Tensor:
        if level is None:
            return F.pad(x, (0, 0, self.taps - 1, 0))
        past = x.new_zeros(x.shape[0], self.taps - 1, x.shape[2]) if level.inputs is None else level.inputs
        x = torch.cat((past, x), dim=1)
        level.inputs = x[:, x.shape[1] - (self.taps - 1) :].clone()
        return x


class Spread(nn.Module):
    """The up-block: in the MLP's place a transposed convolution, then attention.

        u[i] = b + Σ_{j<k/s} V_{(i mod s) + s·j} · norm(h)[⌊i/s⌋ - j]
        x    = e + W_o · GELU(u);   x = x + Attention(norm_1(x))

    Each phase i mod s has a bias of its own. Where h is missing, before the beginning or because the clock of ⌊i/s⌋ - j
    is in another document, stands the norm of a zero vector: its bias, so a learned null vector.
    """

    def __init__(
        self, width: int, coarse: int, n_head: int, stride: int, taps: int, hidden: int, window: int | None = None
    ):
        super().__init__()
        self.stride, self.reach = stride, taps // stride
        self.norm = nn.LayerNorm(coarse)
        self.inner = nn.Linear(self.reach * coarse, stride * hidden)
        self.out = nn.Linear(hidden, width)
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, n_head, window)

    def forward(
        self,
        e: Tensor,
        h: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        level: LevelCache | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """e (B, n, width), and h (B, ceil(n / s), coarse) of the coarser level, to x (B, n, width)."""
        windows = sliding(self._with_past(h, level), self.reach, 1)  # (B, n', k / s, coarse)
        if document_ids is not None:
            clocks = document_ids[:, :: self.stride]
            ids = sliding(F.pad(clocks, (self.reach - 1, 0), value=-1)[..., None], self.reach, 1)
            windows = windows * (ids == ids[:, :, -1:])
        blocks = self.blocks(windows)
        if level is not None:
            x = e + level.spread.follow(blocks, level.seen - e.shape[1], e.shape[1])
        else:
            added = unfolded(blocks, e.shape[1])
            if document_ids is not None:
                null = self.blocks(windows.new_zeros(1, 1, *windows.shape[2:])).expand_as(blocks)
                added = added.where(same_document(document_ids, self.stride), unfolded(null, e.shape[1]))
            x = e + added
        out: Tensor = x + self.attention(self.norm_1(x), rotation, mask, cache)
        return out

    def blocks(self, windows: Tensor) -> Tensor:
        """What windows (B, n, k / s, coarse) of the coarser level give to each of s phases: (B, n, s, width)."""
        u = self.inner(self.norm(windows).flatten(2)).unflatten(2, (self.stride, -1))  # (B, n, s, hidden)
        blocks: Tensor = self.out(F.gelu(u, approximate="tanh"))
        return blocks

    def _with_past(self, h: Tensor, level: LevelCache | None) -> Tensor:
        past = self.reach - 1
        if level is None or not past:
            return F.pad(h, (0, 0, past, 0))
        before = h.new_zeros(h.shape[0], past, h.shape[2]) if level.outputs is None else level.outputs
        h = torch.cat((before, h), dim=1)
        level.outputs = h[:, -past:].clone()
        return h


def same_document(document_ids: Tensor, stride: int) -> Tensor:
    """Whether each vector's document is that of the newest clock before it: (B, n) to (B, n, 1)."""
    clocks = document_ids[:, ::stride].repeat_interleave(stride, dim=1)[:, : document_ids.shape[1]]
    return (clocks == document_ids)[..., None]


class Normed(nn.Module):
    """The way in to level 0 and a level's share of the read-out: W · norm(x), (..., width) to (..., to)."""

    def __init__(self, width: int, to: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, to, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(x))
        return out
