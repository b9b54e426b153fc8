"""The parts of a transformer that the models share: attention, MLP, block, positions and the cache of keys and values.

    B batch · T tokens · C width (n_embd) · H heads · D = C / H

A block adds to the residual stream twice, each time from a normalised copy of it (GPT-2's order, Radford et al. 2019):

    x = x + Attention(norm_1(x))
    x = x + MLP(norm_2(x))
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]


class LayerCache:
    """Keys and values that one attention layer has computed: of all tokens so far, or of the newest `window`.

    With a window the token at position p has the place p % window, and the token that it replaces is out of sight.
    """

    def __init__(self, capacity: int, window: int | None = None):
        self.window = window
        self.capacity = capacity if window is None else min(capacity, window)
        self.length = 0
        """Tokens seen."""
        self._kv: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, H, T, D); returns all that these T tokens may see, the T themselves last if T > 1."""
        T, start = k.shape[2], self.length
        self.length += T
        if self._kv is None:
            B, H, _, D = k.shape
            self._kv = k.new_empty(2, B, H, self.capacity, D)
        if self.window is None or T == 1:
            place = start if self.window is None else start % self.capacity
            self._kv[0, :, :, place : place + T] = k
            self._kv[1, :, :, place : place + T] = v
            keys, values = self._kv[:, :, :, : min(self.length, self.capacity)]
            return keys, values
        held = torch.arange(max(0, start - self.capacity), start, device=k.device) % self.capacity
        keys, values = torch.cat((self._kv[0][:, :, held], k), 2), torch.cat((self._kv[1][:, :, held], v), 2)
        kept = torch.arange(max(start, self.length - self.capacity), self.length, device=k.device) % self.capacity
        self._kv[0][:, :, kept] = k[:, :, T - len(kept) :]
        self._kv[1][:, :, kept] = v[:, :, T - len(kept) :]
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Go on with these rows (n,) of the batch."""
        if self._kv is not None:
            self._kv = self._kv.index_select(1, rows)


class KVCache:
    """A `LayerCache` for every executed layer; `capacity` is the most tokens it can hold."""

    def __init__(self, n_layer: int, capacity: int, window: int | None = None):
        self.layers = [LayerCache(capacity, window) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """Tokens that every layer has seen."""
        return self.layers[-1].length

    def rewind(self, length: int) -> bool:
        """Forget all but the first `length` tokens; false, and nothing done, with a window: newer ones have replaced
        what came back into sight.
        """
        if any(layer.window is not None for layer in self.layers):
            return False
        for layer in self.layers:
            layer.length = min(length, layer.length)
        return True


class Attention(nn.Module):
    """Causal multi-head self-attention: each token reads from itself and the tokens before it.

    With a window w it reads from itself and the w - 1 before it (Longformer, 2004.05150, section 3.1).
    """

    def __init__(self, n_embd: int, n_head: int, window: int | None = None):
        super().__init__()
        self.n_head = n_head
        self.window = window
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.out = nn.Linear(n_embd, n_embd)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """x (B, T, C) to (B, T, C). `mask` (B, 1, T, T), true where a token may look, stands for the causal one."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        v = qkv[2]
        q, k = qkv[:2] if rotation is None else rotate(qkv[:2], rotation)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, K, D)
        y = attend(q, k, v, mask, self.window)
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, T, C))
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None) -> Tensor:
    """What the newest T of K tokens read: q (B, H, T, D), k and v (B, H, K, D) to (B, H, T, D).

    `mask` (B, 1, T, K), true where a token may look, is causal itself. A single token sees all K: a cache that has a
    window holds no more.
    """
    T, K = q.shape[2], k.shape[2]
    if window is not None and window < K and T > 1:
        if mask is None and T == K:
            return _attend_in_blocks(q, k, v, window)
        seen = band(T, K, window, q.device)
        mask = seen if mask is None else mask & seen
    elif mask is None and 1 < T < K:
        mask = band(T, K, K, q.device)
    if mask is None and T > 1:  # no argument: once torch.compile has met two lengths, T > 1 is a symbol there
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def band(T: int, K: int, window: int, device: torch.device) -> Tensor:
    """True where the newest T of K tokens may look: at themselves and the window - 1 tokens before; (T, K)."""
    ago = torch.arange(K - T, K, device=device)[:, None] - torch.arange(K, device=device)
    return (ago >= 0) & (ago < window)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Windowed attention at the cost of T · 2 windows: a block of a window sees itself and the one before.

    What pads the last block comes after every token, so no token sees it.
    """
    B, H, T, D = q.shape
    first = F.scaled_dot_product_attention(q[:, :, :window], k[:, :, :window], v[:, :, :window], is_causal=True)
    n = -(-T // window) - 1  # blocks that have one before them
    q, k, v = (F.pad(t, (0, 0, 0, (n + 1) * window - T)).view(B, H, n + 1, window, D) for t in (q, k, v))
    k, v = (torch.cat((t[:, :, :-1], t[:, :, 1:]), dim=3) for t in (k, v))  # (B, H, n, 2 window, D)
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q[:, :, 1:], k, v))  # (B n, H, …, D)
    rest = F.scaled_dot_product_attention(q, k, v, attn_mask=band(window, 2 * window, window, q.device))
    rest = rest.view(B, n, H, window, D).transpose(1, 2).flatten(2, 3)  # (B, H, n window, D)
    return torch.cat((first, rest), dim=2)[:, :, :T]


class MLP(nn.Module):
    """Two linear maps around GELU, four times as wide inside."""

    def __init__(self, n_embd: int):
        super().__init__()
        self.up = nn.Linear(n_embd, 4 * n_embd)
        self.down = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream x (B, T, C)."""

    def __init__(self, n_embd: int, n_head: int, window: int | None = None):
        super().__init__()
        self.norm_1 = nn.LayerNorm(n_embd)
        self.attention = Attention(n_embd, n_head, window)
        self.norm_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.attention(self.norm_1(x), rotation, mask, cache)
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


def rotary(positions: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """Cosine and sine (T, D/2) of the angles by which rotary embeddings turn positions (T,); 2104.09864, section 3.2.2.

    Computed anew in fp32 by every forward pass (T · D/2 values, once for all layers): a buffer would be cast with the
    weights, and in bf16 the positions 256 and 257 are one number.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[:, None].float() * 10_000.0**-exponent  # (T, D/2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) of x (..., T, D) by its position's angle."""
    cos, sin = (t.to(x.dtype) for t in rotation)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def document_mask(document_ids: Tensor) -> Tensor:
    """True where a token may look: back, within its own document. document_ids (B, T) to (B, 1, T, T)."""
    T = document_ids.shape[1]
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return (same & torch.ones(T, T, dtype=torch.bool, device=same.device).tril())[:, None]


def document_positions(document_ids: Tensor) -> Tensor:
    """Each token's place in its document, whose tokens lie together: (7, 7, 7, 9, 9) gives (0, 1, 2, 0, 1)."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)  # (B, T)
    begins = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0))
    return index - index.where(begins, 0).cummax(dim=1).values
