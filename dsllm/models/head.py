"""The language-model head and its loss, without ever holding all the logits.

8 sequences of 1,024 tokens and 50,257 words make 1.6 GB of fp32 logits, and their gradient as much again. The loss is a
mean over tokens, so it can be had for a few hundred tokens at a time; and as the gradient of softmax cross-entropy is
known in closed form (softmax minus one-hot), each piece yields its share of both gradients at once and is let go:

    logits = hidden[piece] @ weight.T                   (667, 50304): all that is ever held
    d      = softmax(logits) - one_hot(targets)
    d_hidden[piece] = d @ weight;   d_weight += d.T @ hidden[piece]

The same three matrix products as the plain form, nothing recomputed; Liger (2410.10989, section 3.2) does the same in a
Triton kernel. Here the division by the number of targets waits for the backward pass, so that fp16 does not underflow
before the loss scale has come in.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IGNORED = -100  # the target of a position without loss, as in torch's cross_entropy
LOGITS_HELD = 2**25  # 128 MiB in fp32; smaller pieces starve the matrix products, larger ones leave the caches


class TiedHead(nn.Module):
    """Scores every word against a hidden state by the embedding's own matrix.

    It registers the embedding's parameter as its own: whoever gathers or casts parameters module by module (ZeRO-3
    does) finds it here when the head runs, and torch still counts it once.
    """

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.weight = embedding.weight  # (V, E)

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (..., V) of hidden states (..., E); with targets (...) the mean loss in nats, a scalar in fp32."""
        if targets is None:
            return F.linear(hidden, self.weight)
        return chunked_cross_entropy(hidden, self.weight, targets)


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(hidden @ weight.T)[target] over the targets that are not -100, in nats; 0 if there are none.

    hidden (..., E), weight (V, E), targets (...) int64. Products run in the dtype of `hidden`, or autocast's; softmax,
    loss and the sum of weight gradients in fp32. Gradients flow to `hidden` and, unless it is frozen, to `weight`.

    Forward and backward, 2048 × 192 → 50,304, two CPU threads with AMX, best of six, against `F.cross_entropy` on the
    whole logits: MEASURED
    """
    if not torch.is_grad_enabled():  # a Function cannot see no_grad; without this it would make gradients for nobody
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten())
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        want_hidden, want_weight, _ = ctx.needs_input_grad
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        h, w = hidden.to(dtype), weight.to(dtype)  # (N, E), (V, E)
        kept = targets != IGNORED
        targets = targets.where(kept, 0)[:, None]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(h) if want_hidden else None
        d_weight = torch.zeros_like(w, dtype=torch.float32) if want_weight else None
        rows = max(1, LOGITS_HELD // w.shape[0])
        for start in range(0, h.shape[0], rows):
            piece = slice(start, start + rows)
            keep = kept[piece, None]
            d = F.log_softmax(h[piece] @ w.t(), dim=-1, dtype=torch.float32)  # (rows, V)
            loss -= (d.gather(1, targets[piece]) * keep).sum()
            if not (want_hidden or want_weight):
                continue
            d = d.exp_().scatter_add_(1, targets[piece], d.new_full((1, 1), -1).expand(d.shape[0], 1)).to(dtype)
            if d_hidden is not None:
                d_hidden[piece] = (d @ w) * keep
            if d_weight is not None:
                d_weight += d.t() @ (h[piece] * keep)
        count = kept.sum().clamp(min=1)
        ctx.save_for_backward(d_hidden, d_weight, count)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        d_hidden, d_weight, count = ctx.saved_tensors
        scale = grad / count
        scaled = [
            None if d is None else (d.float() * scale).to(dtype)
            for d, dtype in zip((d_hidden, d_weight), ctx.dtypes, strict=True)
        ]
        return scaled[0], scaled[1], None
