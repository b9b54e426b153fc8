"""Texts and folders for the tests of the preparation."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dsllm.data.indexed import IndexedPair
from dsllm.data.manifest import RATES_NAME, Manifest

WORDS = "the theorem integral of naïve ∑ x**2 is bounded by épsilon 12345 中文 and so on def f(x): 🤖"


def texts(count: int, *, seed: int = 0, words: int = 60) -> list[str]:
    """Documents of different lengths, no two alike."""
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS.split(), k=rng.randint(1, 2 * words))) for i in range(count)]


def json_lines(path: Path, documents: Iterable[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text, "n": i}) + "\n" for i, text in enumerate(documents)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the rates, which no two runs share."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != RATES_NAME}


def documents(folder: Path, split: str) -> list[list[int]]:
    """The tokens of a split's documents, in order."""
    pairs = [IndexedPair(folder / shard.name) for shard in Manifest.read(folder).shards if shard.split == split]
    return [np.asarray(pair.document(i)).tolist() for pair in pairs for i in range(len(pair))]
