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

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IGNORED = -100  # the target of a position without loss, as in torch's cross_entropy
LOGITS_HELD = {"cpu": 2**25, "cuda": 2**27}
"""By the device's type. On a CPU, in bf16, half of it is 14 % slower and twice of it 2 % faster. On a GPU a small piece
costs its many launches, and reads and writes the sum of weight gradients."""

COPY_PAYS = 32
"""Tokens to be generated, from which on a transposed copy of the weights is worth its 10 to 30 ms."""
STRIP = 1024  # rows that are transposed at a time, and stay in the cache meanwhile


def logits_held(device: torch.device) -> int:
    """Logits that are worth holding at once on `device`; what is neither a CPU nor a GPU of CUDA is taken for a CPU."""
    return LOGITS_HELD.get(device.type, LOGITS_HELD["cpu"])


class Head(nn.Module):
    """Base of heads: called with hidden states (..., E) they give logits (..., V), with targets (...) the mean loss."""

    def for_generation(self, tokens: int | None = None) -> Callable[[Tensor], Tensor]:
        """What gives the logits (B, V) of a few hidden states (B, E), again and again, while the weights rest.

        `tokens` says how often, if that is known.
        """
        return self

    def compile_loss(self) -> None:
        """Compile what of the loss gains by it; nothing, unless a head says more."""


class TiedHead(Head):
    """Scores every word against a hidden state by the embedding's own matrix.

    It registers the embedding's parameter as its own: whoever gathers or casts parameters module by module (ZeRO-3
    does) finds it here when the head runs, and torch still counts it once.
    """

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.weight = embedding.weight  # (V, E)
        self._compiled = False

    def compile_loss(self) -> None:
        """Compile what stands between the loss's matrix products."""
        self._compiled = True

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (..., V) of hidden states (..., E); with targets (...) the mean loss in nats, a scalar in fp32."""
        if targets is None:
            return F.linear(hidden, self.weight)
        return chunked_cross_entropy(hidden, self.weight, targets, self._compiled)

    def for_generation(self, tokens: int | None = None) -> Callable[[Tensor], Tensor]:
        """On a CPU, for many tokens, from a transposed copy of the weights, V · E numbers more while it is held.

        There torch's product of one row with (V, E) reads 50,304 × 192 in fp32 at 9 GB/s, with (E, V) at 34 GB/s
        (an EPYC's core; 4.1 and 1.1 ms). A Xeon reads one row at 28 GB/s either way, and sixteen in 4.4 and 2.8 ms.
        """
        if self.weight.device.type != "cpu" or (tokens is not None and tokens < COPY_PAYS):
            return self
        transposed = self.weight.new_empty(self.weight.shape[::-1])  # (E, V)
        for strip, rows in zip(transposed.split(STRIP, dim=1), self.weight.detach().split(STRIP), strict=True):
            strip.copy_(rows.t())
        return lambda hidden: hidden @ transposed


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, compiled: bool = False) -> Tensor:
    """Mean of -log softmax(hidden @ weight.T)[target] over the targets that are not -100, in nats; 0 if there are none.

    hidden (..., E), weight (V, E), targets (...) int64. Products run in the dtype of `hidden`, or autocast's; softmax,
    loss and the sum of weight gradients in fp32. Gradients flow to `hidden` and, unless it is frozen, to `weight`. What
    stands between the products can be `compiled`.

    Forward and backward, 2048 × 192 → 50,304, two CPU threads with AMX, median of nine in ms:

                                                        fp32   bf16
        F.cross_entropy of the whole logits              934    754
        F.linear_cross_entropy, batch_chunk_size=512     610    719, and its loss is 11.125 for 11.073
        this                                             613    458
    """
    if not torch.is_grad_enabled():  # a Function cannot see no_grad; without this it would make gradients for nobody
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten(), compiled)
    return loss


def _in_passes(log_p: Tensor, logits: Tensor, target: Tensor, want: bool) -> tuple[Tensor, Tensor]:
    """Losses (n, 1) of logits (n, V) and, if wanted, their gradient; writes over `log_p` and the logits."""
    n = len(logits)
    d = torch.log_softmax(logits, dim=-1, dtype=log_p.dtype, out=log_p[:n])
    losses = -d.gather(1, target)
    if want:
        d.exp_().scatter_add_(1, target, d.new_full((1, 1), -1).expand(n, 1))
    return losses, d if d.dtype == logits.dtype or not want else logits.copy_(d)


@cache
def _in_one() -> Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]:
    """The same, compiled: logits are read once for their sum and once for the gradient, which takes their place."""

    def differentiate(logits: Tensor, target: Tensor, want: bool) -> tuple[Tensor, Tensor]:
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_sum = torch.logsumexp(exact, dim=-1, keepdim=True)
        losses = log_sum - exact.gather(1, target)
        if want:
            words = torch.arange(logits.shape[1], device=logits.device)
            logits.copy_((exact - log_sum).exp() - (words == target).to(exact.dtype))
        return losses, logits

    return torch.compile(differentiate, dynamic=False)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, compiled: bool) -> Tensor:
        want_hidden, want_weight, *_ = ctx.needs_input_grad
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        exact = torch.promote_types(dtype, torch.float32)
        h, w = hidden.to(dtype), weight.to(dtype)  # (N, E), (V, E)
        kept = targets != IGNORED
        targets = targets.where(kept, 0)[:, None]  # (N, 1)
        pieces = max(1, math.ceil(h.shape[0] * w.shape[0] / logits_held(hidden.device)))
        rows = math.ceil(h.shape[0] / pieces)

        # Written again by every piece: fresh memory of this size costs a CPU as much as a matrix product.
        logits = h.new_empty(rows, w.shape[0])
        differentiate = _in_one() if compiled else partial(_in_passes, torch.empty_like(logits, dtype=exact))
        product = torch.empty_like(w) if want_weight and dtype != exact else None
        d_hidden = torch.empty_like(h) if want_hidden else None
        d_weight = torch.zeros_like(w, dtype=exact) if want_weight else None
        loss = torch.zeros((), dtype=exact, device=hidden.device)

        for h_piece, target, keep, start in zip(
            h.split(rows), targets.split(rows), kept[:, None].split(rows), range(0, h.shape[0], rows), strict=True
        ):
            n = h_piece.shape[0]
            torch.mm(h_piece, w.t(), out=logits[:n])
            losses, d = differentiate(logits[:n], target, want_hidden or want_weight)
            loss += (losses * keep).sum()
            if d_hidden is not None:
                d_hidden[start : start + n] = (d @ w) * keep
            if d_weight is not None and product is None:
                torch.addmm(d_weight, d.t(), h_piece * keep, out=d_weight)
            elif d_weight is not None:
                d_weight += torch.mm(d.t(), h_piece * keep, out=product)
        count = kept.sum().clamp(min=1)
        ctx.save_for_backward(d_hidden, d_weight, count)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight, count = ctx.saved_tensors
        scale = grad / count
        scaled = [
            None if d is None else (d.to(grad.dtype) * scale).to(dtype)
            for d, dtype in zip((d_hidden, d_weight), ctx.dtypes, strict=True)
        ]
        return scaled[0], scaled[1], None, None
