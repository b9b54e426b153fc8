"""Texts whose end is to be said: a context, and what follows. Right is a model that finds every token of it likeliest.

    held-out text     "… the group is abelian if its elements"    " commute"      as LAMBADA (1606.06031), by words
    problems          "a=3;b=a;b?"                                "3"             every answer of `data_prep reasoning`

The same items are tasks of lm-eval (launch/lm_eval), cut into tokens and scored in the same way, so that its accuracy
must be ours.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dsllm.data.batches import NO_TARGET
from dsllm.data.indexed import IndexedPair
from dsllm.data.problems import ProblemDataset, holds_problems, longest_problem
from dsllm.data.shards import open_split
from dsllm.errors import DataError
from dsllm.models.language_model import LanguageModel
from dsllm.tokenizer import Tokenizer, tokenizer_of

READ = 4096
"""Tokens of a document that are looked at."""
WORD = re.compile(r"(?<=\S) [A-Za-z]{3,}(?![\w'])")


@dataclass(frozen=True)
class Item:
    """A text and what comes then."""

    context: str
    target: str
    length: int = 0
    """Of a problem: of its chain."""


@dataclass(frozen=True)
class Score:
    """Of some items."""

    accuracy: float
    """The share whose every token is the likeliest."""
    nats: float
    """The mean cost of a target, all its tokens."""
    items: int

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.4f}, {self.nats:.4f} nats per target, {self.items:,} targets"


def items_of(data: Path, split: str = "test", count: int = 500, words: int = 40) -> list[Item]:
    """Items of a data folder: answers if it holds problems, else words of its documents, each behind `words` others.

    `count` at most, evenly spaced over the split.

    Raises:
        DataError: no such folder or split, no document of that many words, or problems that no text can say.
    """
    tokenizer = tokenizer_of(Path(data))
    if holds_problems(Path(data)):
        return _answers(Path(data), split, count, tokenizer)
    found = _words(Path(data), split, count, words, tokenizer)
    if not found:
        raise DataError(f"{data}: no document of split {split} has {words} words; take fewer words, or another split")
    return found


def rows(data: str | Path, **options: Any) -> list[dict[str, Any]]:
    """The same as plain rows."""
    return [asdict(item) for item in items_of(Path(data), **options)]


def _words(data: Path, split: str, count: int, words: int, tokenizer: Tokenizer) -> list[Item]:
    pairs = [shard for shard in open_split(data, split).shards if isinstance(shard, IndexedPair)]
    texts = [(pair, number) for pair in pairs for number in range(pair.documents)]
    found = []
    for pair, number in texts:
        tokens = pair.document(number)[:READ]
        text = tokenizer.decode(int(token) for token in tokens if token != tokenizer.end_of_text)
        starts = [match.start() for match in re.finditer(r"\S+", text)]
        word = WORD.search(text, starts[words]) if len(starts) > words else None
        if word is not None:
            found.append(Item(text[: word.start()], word.group()))
    return _spaced(found, count)


def _answers(data: Path, split: str, count: int, tokenizer: Tokenizer) -> list[Item]:
    problems = ProblemDataset(data, split, longest_problem(data, split))
    found = []
    for number in _spaced(range(len(problems)), count):
        tokens, (labels, depths) = problems.sample(number), problems.labels(number)
        for end in np.flatnonzero(depths):
            first = end
            while first and labels[first - 1] != NO_TARGET and not depths[first - 1]:
                first -= 1
            asked, answer = tokens[: first + 1], labels[first : end + 1]
            context, target = tokenizer.decode(asked), tokenizer.decode(answer)
            if not np.array_equal(tokenizer.encode(context + target), np.concatenate([asked, answer])):
                raise DataError(f"{data}: its problems are words of their own, which no text says; take a written task")
            found.append(Item(context, target, int(depths[end])))
    return found


def _spaced(values: Sequence[Any], count: int) -> list[Any]:
    if len(values) <= count:
        return list(values)
    return [values[place * len(values) // count] for place in range(count)]


@torch.no_grad()
def score(model: LanguageModel, tokenizer: Tokenizer, items: Sequence[Item], batch_size: int = 16) -> Score:
    """Ask a model, in eval mode, for every item's target. Contexts that are too long lose their beginning."""
    device = next(model.parameters()).device
    right, nats = 0, 0.0
    for start in range(0, len(items), batch_size):
        pairs = [encoded(tokenizer, item) for item in items[start : start + batch_size]]
        rows = [np.concatenate(pair)[-model.config.context - 1 :] for pair in pairs]
        width = max(map(len, rows)) - 1
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens) - 1] = torch.from_numpy(tokens[:-1].astype(np.int64))  # padding follows all that counts
        hidden = model.hidden(ids.to(device))
        for states, tokens, (_, target) in zip(hidden, rows, pairs, strict=True):
            end = len(tokens) - 1
            logits = model.head(states[end - len(target) : end]).float()
            wanted = torch.from_numpy(target.astype(np.int64)).to(device)
            right += bool((logits.argmax(-1) == wanted).all())
            nats += float(F.cross_entropy(logits, wanted, reduction="sum"))
    return Score(right / len(items), nats / len(items), len(items))


def encoded(tokenizer: Tokenizer, item: Item) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of context and target, cut apart where the context's own end, as lm-eval does it."""
    kept = item.context.rstrip()
    whole = tokenizer.encode(item.context + item.target)
    context = tokenizer.encode(kept)
    return context, whole[len(context) :]


def by_length(items: Sequence[Item]) -> Iterator[tuple[int, list[Item]]]:
    """The items of each chain length, in ascending order."""
    for length in sorted({item.length for item in items}):
        yield length, [item for item in items if item.length == length]
