"""A data folder that tests of hosts train on, made where they need one."""

import random
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dsllm.data.indexed import IndexedWriter
from dsllm.data.manifest import Manifest, ShardInfo
from dsllm.tokenizer import load_tokenizer


def write_tokens(folder: Path) -> None:
    """A training split of 200 documents, by the byte tokenizer."""
    folder.mkdir()
    draw, tokenizer = random.Random(0), load_tokenizer("bytes")
    with IndexedWriter(folder / "train_00000", tokenizer.dtype) as writer:
        for _ in range(200):
            text = "".join(draw.choices("induction ", k=200))
            writer.add(np.append(tokenizer.encode(text), tokenizer.end_of_text))
        pair = writer.finish()
    Manifest(
        complete=True,
        tokenizer=tokenizer.info,
        source={"files": ["induction"]},
        split_rule={"train": 1.0},
        shards=[ShardInfo(split="train", name="train_00000", text_bytes=200 * 200, **asdict(pair))],
    ).write(folder)
