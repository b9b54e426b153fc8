"""Small data folders, made with the real writer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsllm.data.indexed import IndexedWriter
from dsllm.data.manifest import Manifest, ShardInfo, TokenizerInfo

END = 300
TOKENIZER = TokenizerInfo(name="small", size=END + 1, end_of_text=END, vocab_sha256="a" * 64)


def documents(seed: int, count: int, longest: int = 40) -> list[np.ndarray]:
    """Documents of 1 to `longest` tokens, the last of each an end-of-text."""
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(0, END, rng.integers(0, longest)), END) for _ in range(count)]


def write_shard(folder: Path, split: str, number: int, docs: Sequence[np.ndarray], dtype: str = "u2") -> ShardInfo:
    name = f"{split}_{number:05d}"
    with IndexedWriter(folder / name, dtype) as writer:
        for document in docs:
            writer.add(document)
        summary = writer.finish()
    return ShardInfo(
        split=split,
        name=name,
        tokens=summary.tokens,
        documents=summary.documents,
        text_bytes=summary.tokens,
        bin_sha256=summary.bin_sha256,
        idx_sha256=summary.idx_sha256,
    )


def write_folder(
    folder: Path,
    splits: dict[str, list[list[np.ndarray]]],
    *,
    complete: bool = True,
    tokenizer: TokenizerInfo = TOKENIZER,
) -> Path:
    """A data folder of {split: shards of documents}."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [write_shard(folder, split, i, docs) for split, parts in splits.items() for i, docs in enumerate(parts)]
    manifest = Manifest(
        complete=complete, tokenizer=tokenizer, source={"made": "by a test"}, split_rule={}, shards=shards
    )
    manifest.write(folder)
    return folder
