"""Opens the token files of one split, whatever wrote them.

    DIR with manifest.json                            our own shards of that split, in the manifest's order
    DIR with train.bin, train_*.bin, *_train_*.bin    nanoGPT, llm.c, modded-nanogpt, Megatron (.bin beside .idx)
    FILE.bin, or PREFIX of PREFIX.bin and PREFIX.idx  one such file: train, or the split that its name contains

What a `.bin` is, it says itself: a pair has an `.idx` beside it, llm.c's begins with its number, anything else is raw.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dsllm.data.files import allow_open_files, inside
from dsllm.data.foreign import is_llmc, read_llmc, read_nanogpt
from dsllm.data.indexed import REPREPARE, IndexedPair, idx_path
from dsllm.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, TokenizerInfo
from dsllm.errors import DataError

FILES_OF_A_PAIR = 2


class Shard(Protocol):
    """A stream of tokens that knows where its documents begin."""

    @property
    def tokens(self) -> npt.NDArray[np.integer]:
        """The stream, shape (tokens,), memory-mapped."""

    def starts_between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The document starts p with start < p < stop."""


@dataclass(frozen=True)
class Split:
    """The open shards of one split, in reading order."""

    shards: list[Shard]
    tokenizer: TokenizerInfo | None
    """Of the manifest; for foreign files what the caller expects, or None."""


def open_split(path: Path, split: str, tokenizer: TokenizerInfo | None = None) -> Split:
    """Opens a split for reading samples here and there.

    Every check is made that costs no pass over the data; `verify_folder` makes the others.

    Args:
        path: a folder, a `.bin` or the prefix of a pair, as above.
        split: train, val or test.
        tokenizer: the one that the reader expects; None takes any.

    Raises:
        DataError: nothing there, no such split, another tokenizer, or files that do not fit their manifest.
    """
    path = Path(path)
    if path.is_dir():
        if (path / MANIFEST_NAME).exists():
            return _of_manifest(path, split, tokenizer)
        files = sorted({file for pattern in (f"{split}.bin", f"{split}_*.bin", f"*_{split}_*.bin")
                        for file in path.glob(pattern)})  # fmt: skip
        if not files:
            raise DataError(
                f"{path}: no {MANIFEST_NAME} and no {split}.bin, {split}_*.bin or *_{split}_*.bin; "
                "make a data folder with `python -m data_prep tokenize`"
            )
        for file in files:
            for name in (file.name, idx_path(file.with_suffix("")).name):
                inside(path, name)
        allow_open_files(FILES_OF_A_PAIR * len(files))
        return Split([_open_file(file, tokenizer) for file in files], tokenizer)
    file = path if path.suffix == ".bin" else path.with_name(path.name + ".bin")
    if not file.is_file():
        raise DataError(
            f"{path}: no such folder or token file; make one with "
            f"`python -m data_prep tokenize --source … --out {path}`"
        )
    if split != "train" and split not in re.split(r"[^A-Za-z]+", file.stem):
        raise DataError(
            f"{file}: one file, read as train; it has no split {split!r}: give a folder with {split}.bin in it"
        )
    return Split([_open_file(file, tokenizer)], tokenizer)


def _of_manifest(folder: Path, split: str, tokenizer: TokenizerInfo | None) -> Split:
    manifest = Manifest.read(folder)
    if tokenizer is not None and not tokenizer.same_as(manifest.tokenizer):
        raise DataError(
            f"{folder}: made with the tokenizer {manifest.tokenizer}, not with {tokenizer}; "
            f"prepare the text with `--tokenizer {tokenizer.name}` or take a model of that vocabulary"
        )
    listed = manifest.shards_of(split, folder)
    allow_open_files(FILES_OF_A_PAIR * len(listed))
    shards: list[Shard] = [open_shard(folder, shard, random_access=True) for shard in listed]
    return Split(shards, manifest.tokenizer)


def open_shard(folder: Path, shard: ShardInfo, *, random_access: bool = False) -> IndexedPair:
    """One shard of a manifest; `random_access` as for `IndexedPair`.

    Raises:
        DataError: its files are broken, links that lead out of the folder, or of other counts than the manifest's.
    """
    for name in shard.files:
        inside(Path(folder), name)
    pair = IndexedPair(Path(folder) / shard.name, random_access=random_access)
    for what, found, expected in (
        ("tokens", len(pair.tokens), shard.tokens),
        ("documents", pair.documents, shard.documents),
    ):
        if found != expected:
            raise DataError(f"{pair.prefix}.bin: {found:,} {what}, the manifest counts {expected:,}; {REPREPARE}")
    return pair


def _open_file(file: Path, tokenizer: TokenizerInfo | None) -> Shard:
    prefix = file.with_suffix("")
    if idx_path(prefix).exists():
        return IndexedPair(prefix, random_access=True)
    if is_llmc(file):
        return read_llmc(file, random_access=True)
    return read_nanogpt(file, tokenizer.end_of_text if tokenizer else None, random_access=True)
