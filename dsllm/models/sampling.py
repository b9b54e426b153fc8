"""How the next token is chosen, and what a model sees of a text that has outgrown its context.

`Sampler(temperature=0.8, top_k=50, top_p=0.95, seed=1)` scales logits by 1/0.8, keeps the 50 likeliest tokens, of these
the fewest that hold 95 % of the probability (nucleus sampling, 1904.09751), and draws one. Temperature 0 takes the
likeliest and draws nothing.
"""

import torch
from torch import Tensor

from dsllm.errors import UserError


class Sampler:
    """Chooses a token per row of logits; the same seed on the same device makes the same choices."""

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ):
        if not 0 <= temperature < float("inf"):
            raise UserError(f"temperature = {temperature}: take 0 for the likeliest token, or a positive number")
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k = {top_k}: at least 1 token must be left; leave it out to keep all")
        if top_p is not None and not 0 < top_p <= 1:
            raise UserError(f"top_p = {top_p}: a probability above 0 and up to 1 is needed")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        # Without a seed torch's own random state decides.
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Tokens (B,) chosen by logits (B, V)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits.float() / self.temperature
        tokens = None  # the columns of `logits`, where they are not the vocabulary in its order
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits, tokens = logits.topk(self.top_k)  # (B, k), descending
        elif self.top_p is not None:
            logits, tokens = logits.sort(descending=True)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None:
            before = probabilities.cumsum(dim=-1) - probabilities  # so that the likeliest always stays
            probabilities = probabilities.masked_fill(before >= self.top_p, 0)
        choice = torch.multinomial(probabilities, 1, generator=self.generator)  # (B, 1), unnormalised is allowed
        return (choice if tokens is None else tokens.gather(1, choice)).squeeze(1)


def window_start(length: int, context: int) -> int:
    """The first of `length` tokens that the model sees: 0 up to its context, then on by half a context at a time.

    With a context of 8 the windows of 8, 9, 12 and 13 tokens begin at 0, 4, 4 and 8. A cache counts positions from the
    window's start, so it cannot slide and is filled anew at each move: once in half a context, not at every token.
    """
    hop = max(1, context // 2)
    return max(0, -(-(length - context) // hop) * hop)
