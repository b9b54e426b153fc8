"""Vectors of texts: the states of one level of a language model, pooled.

    21 tokens of text, a level of S = 16 tokens a vector, `·` end-of-text:

    tokens   · · · · · · · · · · · · The cat sat on | the mat and … watched the red door .     33 = 16 · ⌈21/16⌉ + 1
    clock    0                                      16                                   32
    vector   0                                      1                                    2

A vector has seen the tokens up to its clock. End-of-text goes before the text until a clock falls on the last token;
else a short text would have no vector that knows more than its beginning. At least one goes there, as before a document
in training; vector 0 knows nothing else and is left out. `mean` is the mean of vectors 1 and 2, `last` is vector 2.
(As many behind the text would reach as far, but a model takes them for its end, and `last` would be of what follows.)

The model is causal, so what stands behind a text's newest vector changes none of its vectors: texts of several lengths
go through the model together, filled up with end-of-text. A text that is longer than the context is cut into equal
chunks; its vector is the mean of theirs, weighed by their tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dsllm.errors import UserError
from dsllm.models.language_model import LanguageModel
from dsllm.tokenizer import Tokenizer

Pool = Literal["mean", "last"]
Tokens = npt.NDArray[np.integer]


class Embedder:
    """Texts to vectors of length 1: `Embedder(model, tokenizer)(["a text", "another"])`, the model in eval mode.

    Args:
        level: whose vectors are pooled, one of `model.spans`; negative ones count from the innermost.
        pool: their mean, or the newest one.
        batch_tokens: tokens in one forward pass, more only if one text has more.

    Raises:
        UserError: a level that the model has not, or that has one vector in its context; a pool of another name.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        level: int = -1,
        pool: Pool = "mean",
        *,
        batch_tokens: int = 1 << 13,
    ):
        spans, context = model.spans, model.config.context
        if not -len(spans) <= level < len(spans):
            has = f"levels 0 to {len(spans) - 1}" if len(spans) > 1 else "level 0 alone"
            raise UserError(f"level = {level}: this model has {has}; take one of them, or -1 for the innermost")
        if pool not in get_args(Pool):
            raise UserError(f"pool = {pool}: take one of {', '.join(get_args(Pool))}")
        self.model, self.tokenizer, self.pool, self.batch_tokens = model, tokenizer, pool, batch_tokens
        self.level = level % len(spans)
        self.span = spans[self.level]
        self.most_tokens = (context - 1) // self.span * self.span
        """Tokens of a text that go through the model at once."""
        if not self.most_tokens:
            raise UserError(
                f"level = {level}: a vector of it stands for {self.span} tokens, so a context of {context} has but the "
                f"first, which knows one token; take a level further out"
            )

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors of texts, (len(texts), width). Raises `UserError` as `encode` does."""
        return self.embed(self.encode(texts))

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text. Raises `UserError` for no text, or one that is empty or white space alone."""
        if not texts:
            raise UserError("no text; give at least one to embed")
        documents = [self.tokenizer.encode(text) for text in texts]
        for number, (text, tokens) in enumerate(zip(texts, documents, strict=True), 1):
            if not text.strip() or not len(tokens):
                raise UserError(f"text {number} of {len(texts)}: empty; give some words to embed")
        return documents

    @torch.no_grad()
    def embed(self, documents: Sequence[Tokens]) -> npt.NDArray[np.float32]:
        """The vectors of tokenized texts, (len(documents), width), each of at least one token."""
        chunks = [(row, chunk) for row, tokens in enumerate(documents) for chunk in self.chunks(tokens)]
        chunks.sort(key=lambda chunk: len(chunk[1]))  # those of about the same length need little filling up
        sums: Tensor | None = None
        for batch in self._batches(chunks):
            rows = torch.tensor([row for row, _ in batch])
            lengths = torch.tensor([len(chunk) for _, chunk in batch])
            pooled = self._pooled([chunk for _, chunk in batch], lengths)
            if sums is None:
                sums = torch.zeros(len(documents), pooled.shape[1])
            sums.index_add_(0, rows, lengths[:, None] * pooled)
        assert sums is not None
        return normalize(sums).numpy()

    def chunks(self, tokens: Tokens) -> list[Tokens]:
        """A text's tokens in the fewest equal parts that go through the model at once."""
        return np.array_split(tokens, -(-len(tokens) // self.most_tokens))

    def _batches(self, chunks: Sequence[tuple[int, Tokens]]) -> Iterator[list[tuple[int, Tokens]]]:
        """Neighbours in the order of length, as many as `batch_tokens` allows."""
        batch: list[tuple[int, Tokens]] = []
        for chunk in chunks:
            if batch and (len(batch) + 1) * self._filled(len(chunk[1])) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(chunk)
        yield batch

    def _filled(self, length: int) -> int:
        """Tokens up to the end of a text of `length` tokens, with end-of-text before it."""
        return self.span * -(-length // self.span) + 1

    def _pooled(self, batch: Sequence[Tokens], lengths: Tensor) -> Tensor:
        """One vector for each text: (B, width), fp32 on the CPU."""
        ids = np.full((len(batch), self._filled(int(lengths.max()))), self.tokenizer.end_of_text, np.int64)
        for row, tokens in zip(ids, batch, strict=True):
            end = self._filled(len(tokens))
            row[end - len(tokens) : end] = tokens
        device = next(self.model.parameters()).device
        vectors = self.model.vectors(torch.from_numpy(ids).to(device), self.level).float().cpu()  # (B, n, width)
        newest = (lengths + self.span - 1) // self.span  # (B,)
        if self.pool == "last":
            return vectors[torch.arange(len(batch)), newest]
        numbers = torch.arange(vectors.shape[1])
        pooled = (numbers >= 1) & (numbers <= newest[:, None])  # (B, n)
        return (vectors * pooled[..., None]).sum(dim=1) / pooled.sum(dim=1, keepdim=True)
