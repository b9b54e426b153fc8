"""Texts to judge embeddings by, from the held-out documents of a data folder.

    a Python file     → its docstrings             a passage: 400 characters or more, of the first 1,200
    any other text    → itself                     its halves: cut at the white space nearest to the middle
                                                   its sentences: of its paragraphs of prose, 6 to 40 words each

A document is a file; passages and sentences remember which, since those of one file are alike and must be resampled
together. Copies are left out.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsllm.data.indexed import IndexedPair
from dsllm.data.manifest import Manifest
from dsllm.tokenizer import tokenizer_of

PASSAGE = 400, 1200
"""Characters of a passage, at least and at most."""
WORDS = 6, 40
"""Words of a sentence, at least and at most."""


CODE = r"\s*(>>>|\.\.\. |\.\. |[-=~*|+`]{3,}|[\w*, ]+ : )"
"""Lines of examples, directives, headings, tables and lists of parameters."""


class Pair(NamedTuple):
    """Two texts, and the documents that they are from."""

    first: str
    second: str
    document: int
    other: int


def documents(folder: Path, split: str) -> Iterator[str]:
    """The documents of a split, decoded from its tokens. Raises `DataError` if there are none."""
    tokenizer = tokenizer_of(folder)
    for shard in Manifest.read(folder).shards_of(split, folder):
        pair = IndexedPair(folder / shard.name)
        for number in range(len(pair)):
            yield tokenizer.decode(pair.document(number)[:-1].tolist())


def prose(document: str) -> list[str]:
    """The docstrings of a Python file; of another text itself."""
    try:
        tree = ast.parse(document)
    except (SyntaxError, ValueError, RecursionError):
        return [document]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def halves(text: str) -> tuple[str, str] | None:
    """The two halves of a passage, or None of a text that is too short or a single word."""
    text = text.strip()
    if len(text) > PASSAGE[1]:
        text = text[: PASSAGE[1] + 1].rsplit(maxsplit=1)[0]
    if len(text) < PASSAGE[0]:
        return None
    gaps = [gap.start() for gap in re.finditer(r"\s+", text)]
    if not gaps:
        return None
    middle = min(gaps, key=lambda gap: abs(gap - len(text) // 2))
    return text[:middle].strip(), text[middle:].strip()


def sentences(text: str) -> Iterator[list[str]]:
    """The sentences of each paragraph of prose: no code, no headings, no tables; too short or long ones end a row."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if any(re.match(CODE, line) for line in lines):
            continue
        row: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(paragraph.split())):
            if is_sentence(sentence):
                row.append(sentence)
            elif row:
                yield row
                row = []
        if row:
            yield row


def is_sentence(text: str) -> bool:
    """Of so many words, closed, and for the most part of letters: neither code nor a formula."""
    letters = sum(character.isalpha() or character.isspace() for character in text)
    words = text.split()
    return WORDS[0] <= len(words) <= WORDS[1] and text.endswith((".", "!", "?")) and letters >= 0.85 * len(text)


def retrieval_groups(texts: list[str], size: int, generator: np.random.Generator) -> list[list[Pair]]:
    """Groups of `size` passages as the pairs of their halves; no passage is in two groups, the last few are in none."""
    seen: set[str] = set()
    pairs = []
    for document, text in enumerate(texts):
        for passage in prose(text):
            both = halves(passage)
            if both is not None and not seen & set(both):
                seen.update(both)
                pairs.append(Pair(*both, document, document))
    order = generator.permutation(len(pairs))
    return [[pairs[i] for i in order[start : start + size]] for start in range(0, len(pairs) - size + 1, size)]


def sentence_pairs(texts: list[str], most: int, generator: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
    """Up to `most` pairs of neighbouring sentences, and as many of the same first ones with one of another document.

    None if there are no two documents with such pairs.
    """
    seen: set[str] = set()
    adjacent: list[Pair] = []
    for document, text in enumerate(texts):
        for passage in prose(text):
            for row in sentences(passage):
                for first, second in pairwise(row):
                    if first not in seen and second not in seen:
                        seen.update((first, second))
                        adjacent.append(Pair(first, second, document, document))
    adjacent = [adjacent[i] for i in generator.permutation(len(adjacent))[:most]]
    if len({pair.document for pair in adjacent}) < 2:
        return [], []
    random = []
    for pair in adjacent:
        while (other := adjacent[generator.integers(len(adjacent))]).document == pair.document:
            pass
        random.append(Pair(pair.first, other.second, pair.document, other.document))
    return adjacent, random
