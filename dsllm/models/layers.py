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
    """Keys and values that one attention layer has computed for the tokens so far."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._kv: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, H, T, D); returns all of them, (B, H, length, D)."""
        start, self.length = self.length, self.length + k.shape[2]
        if self._kv is None:
            B, H, _, D = k.shape
            self._kv = k.new_empty(2, B, H, self.capacity, D)
        self._kv[0, :, :, start : self.length] = k
        self._kv[1, :, :, start : self.length] = v
        keys, values = self._kv[:, :, :, : self.length]
        return keys, values


class KVCache:
    """A `LayerCache` for every executed layer; `capacity` is the most tokens it can hold."""

    def __init__(self, n_layer: int, capacity: int):
        self.layers = [LayerCache(capacity) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """Tokens that every layer has seen."""
        return self.layers[-1].length


class Attention(nn.Module):
    """Causal multi-head self-attention: each token reads from itself and the tokens before it."""

    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.out = nn.Linear(n_embd, n_embd)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """x (B, T, C) to (B, T, C). `mask` (B, 1, T, T), true where a token may look, replaces the causal one."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        v = qkv[2]
        q, k = qkv[:2] if rotation is None else rotate(qkv[:2], rotation)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, T_past + T, D)
            past = cache.length - T
            if past and T > 1:
                mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        # a prefill starts from an empty cache; one token sees all
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1)
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, T, C))
        return out


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

    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.norm_1 = nn.LayerNorm(n_embd)
        self.attention = Attention(n_embd, n_head)
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
