"""What a model writes at its evaluations: beginnings of held-out text, continued by its own tokens.

    val, sample 0     Theorem 2. Let G be a │ group of the same order as …
                      taken from the data    drawn one by one, at temperature 0.8, by the run's seed

By every rank, with as many forward passes of the engine: at ZeRO 3 each has a part of every weight. Whole rows go
through it for each new token, without a cache of keys, as short passes; a row is padded at its end, where no causal
model looks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dsllm.config import RunConfig
from dsllm.data.dataset import SampleSource
from dsllm.errors import ConfigError, shortened
from dsllm.models.sampling import Sampler
from dsllm.tokenizer import Tokenizer

TEMPERATURE = 0.8
ROWS, LONGEST = 2, 32
"""Of the data: beginnings that are taken, and their tokens at most; a quarter of the context if that is less."""
HELD = 2048
"""Tokens that go through the model at once, for their logits are all held; a single row may be longer."""


@dataclass(frozen=True)
class Continuation:
    """A beginning and what the model wrote after it, as text."""

    prompt: str
    text: str

    def markdown(self) -> str:
        """Both as they are: no character of theirs is taken for markup."""
        return "\n\n".join(
            f"{title}\n\n" + "\n".join(f"    {line}" for line in text.splitlines() or [""])
            for title, text in (("**prompt**", self.prompt), ("**continuation**", self.text))
        )


class Continuations:
    """Continues the same beginnings, by the same random numbers, whenever it is asked to."""

    def __init__(
        self,
        prompts: Sequence[str] | None,
        new_tokens: int,
        source: SampleSource | None,
        tokenizer: Tokenizer,
        context: int,
        seed: int,
    ):
        """`prompts`, or if None beginnings of `source`'s samples; none of problems, whose labels are no text.

        Raises `ConfigError` for a prompt that leaves no room for `new_tokens` in the context, or holds no token.
        """
        self.tokenizer, self.seed = tokenizer, seed
        self.rows: list[list[int]] = []
        if prompts is not None:
            self.new_tokens = new_tokens
            self.rows = [_encoded(prompt, tokenizer, context - new_tokens) for prompt in prompts] if new_tokens else []
            return
        begin = max(1, min(LONGEST, context // 4))
        self.new_tokens = min(new_tokens, context - begin)
        if source is not None and not source.labelled and self.new_tokens:
            chosen = sorted({row * len(source) // ROWS for row in range(ROWS)})
            self.rows = [source.sample(index)[:begin].tolist() for index in chosen]

    @torch.no_grad()
    def write(
        self, model: Callable[..., Any], device: torch.device, stop: Callable[[], Any] = lambda: False
    ) -> list[Continuation]:
        """Continue each prompt; `model` is called as a `LanguageModel` in eval mode, by every rank alike.

        None at all if `stop`, which is asked before each token, says so, or where the logits are no numbers.
        """
        written: list[Continuation] = []
        sampler = Sampler(TEMPERATURE, seed=self.seed, device=device)
        at_once = max(1, HELD // (max(map(len, self.rows), default=0) + self.new_tokens + 1))
        for first in range(0, len(self.rows), at_once):
            rows = self.rows[first : first + at_once]
            ids = self._continued(rows, model, sampler, device, stop)
            if ids is None:
                return []
            written += [self._told(row.tolist(), len(tokens)) for row, tokens in zip(ids, rows, strict=True)]
        return written

    def _continued(
        self,
        rows: Sequence[Sequence[int]],
        model: Callable[..., Any],
        sampler: Sampler,
        device: torch.device,
        stop: Callable[[], Any],
    ) -> torch.Tensor | None:
        """Rows of one batch, padded at their ends; as many passes on every rank whatever the logits are."""
        longest, finite = max(map(len, rows)), True
        ends = torch.tensor([len(row) for row in rows], device=device)
        ids = torch.zeros(len(rows), longest + self.new_tokens, dtype=torch.int64, device=device)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, device=device)
        index = torch.arange(len(rows), device=device)
        for new in range(self.new_tokens):
            if stop():
                return None
            logits = model(ids[:, : longest + new]).logits  # (B, T, V)
            newest = logits[index, ends + new - 1, : self.tokenizer.size].float()  # (B, V')
            finite = finite and bool(newest.isfinite().all())
            ids[index, ends + new] = sampler(newest if finite else torch.zeros_like(newest))
        return ids if finite else None

    def _told(self, row: list[int], begin: int) -> Continuation:
        end = begin + self.new_tokens
        return Continuation(self.tokenizer.decode(row[:begin]), self.tokenizer.decode(row[begin:end]))


def continuations_of(config: RunConfig, splits: Mapping[str, SampleSource], tokenizer: Tokenizer) -> Continuations:
    """As a run's `monitor` section asks for them."""
    monitor = config.monitor
    return Continuations(
        monitor.prompts, monitor.new_tokens, splits.get("val"), tokenizer, config.model.context, config.train.seed
    )


def _encoded(prompt: str, tokenizer: Tokenizer, room: int) -> list[int]:
    tokens = [int(token) for token in tokenizer.encode(prompt)]
    shown = f"monitor.prompts: {shortened(repr(prompt), 60)}"
    if not tokens:
        raise ConfigError(f"{shown} holds no token; give some text to continue")
    if len(tokens) > room:
        raise ConfigError(
            f"{shown} has {len(tokens)} tokens, and model.context - monitor.new_tokens leaves {max(room, 0)}; shorten "
            f"it, or take fewer monitor.new_tokens"
        )
    return tokens
