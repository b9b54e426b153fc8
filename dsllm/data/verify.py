"""The checks of a data folder that read all of it: what opening it leaves out because it must be quick.

manifest         readable, complete
each .idx        its SHA-256, every row
each .bin        its SHA-256, every token id in the vocabulary, an end-of-text token at the end of every document
the folder       no token files that the manifest does not know
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dsllm.data.files import inside, sha256_of
from dsllm.data.indexed import REPREPARE, IndexedPair, bin_path, idx_path
from dsllm.data.manifest import LABELS, Manifest, ShardInfo, StreamInfo
from dsllm.data.shards import open_shard
from dsllm.errors import DataError

CHUNK_TOKENS = 1 << 22
CHUNK_DOCUMENTS = 1 << 20


@dataclass
class VerifyReport:
    """What was checked, and what was wrong with it."""

    manifest: Manifest
    problems: list[str] = field(default_factory=list)
    """One message each, with the thing, its value and the cure; empty if all is well."""

    @property
    def sound(self) -> bool:
        return not self.problems


def verify_folder(path: Path, progress: Callable[[ShardInfo], object] = lambda shard: None) -> VerifyReport:
    """Reads a data folder from end to end and gathers everything that is wrong with it.

    Args:
        path: the folder.
        progress: called after each shard.

    Raises:
        DataError: no readable manifest, so that there is nothing to check against.
    """
    folder = Path(path)
    report = VerifyReport(Manifest.read(folder))
    if not report.manifest.complete:
        report.problems.append(
            f"{folder}: its preparation did not end; leave its files, the same `data_prep` command goes on with them"
        )
    for shard in report.manifest.shards:
        try:
            _verify_shard(folder, shard, report.manifest)
        except DataError as error:
            report.problems.append(str(error))
        progress(shard)
    if not report.manifest.complete:
        return report  # of the files that are there the journal knows
    known = {file for shard in report.manifest.shards for file in shard.files}
    there = {file.name for suffix in (".bin", ".idx") for file in folder.glob(f"*{suffix}")}
    report.problems += [
        f"{folder / name}: not in the manifest; move it out of the folder" for name in sorted(there - known)
    ]
    return report


def _verify_shard(folder: Path, shard: ShardInfo, manifest: Manifest) -> None:
    prefix = folder / shard.name
    for name in shard.files:
        inside(folder, name)
    _verify_checksums(prefix, shard)
    pair = open_shard(folder, shard)
    pair.check_index()
    for name, stream in shard.parallel.items():
        _verify_stream(prefix.with_name(f"{shard.name}.{name}"), stream, pair, manifest.tokenizer.size)
    for start in range(0, len(pair.tokens), CHUNK_TOKENS):
        chunk = pair.tokens[start : start + CHUNK_TOKENS]
        low, high = int(chunk.min()), int(chunk.max())
        if low < 0 or high >= manifest.tokenizer.size:
            wrong = low if low < 0 else high
            raise DataError(f"{bin_path(prefix)}: token id {wrong}, {manifest.tokenizer} ends before; {REPREPARE}")
    for start in range(0, pair.documents, CHUNK_DOCUMENTS):
        last = pair.document_ends(start, start + CHUNK_DOCUMENTS) - 1
        open_ended = np.flatnonzero(pair.tokens[last] != manifest.tokenizer.end_of_text)
        if len(open_ended):
            document = start + int(open_ended[0])
            raise DataError(f"{bin_path(prefix)}: document {document} does not end with end-of-text; {REPREPARE}")


def _verify_checksums(prefix: Path, of: ShardInfo | StreamInfo) -> None:
    for file, expected in ((bin_path(prefix), of.bin_sha256), (idx_path(prefix), of.idx_sha256)):
        if (found := sha256_of(file)) != expected:
            raise DataError(
                f"{file}: SHA-256 {found[:16]}…, the manifest has {expected[:16]}…; fetch it again or {REPREPARE}"
            )


def _verify_stream(prefix: Path, stream: StreamInfo, tokens: IndexedPair, symbols: int) -> None:
    """One that goes with a shard's tokens: as many numbers in each document, none beyond the vocabulary."""
    _verify_checksums(prefix, stream)
    pair = IndexedPair(prefix)
    pair.check_index()
    if len(pair.sizes) != len(tokens.sizes) or (pair.sizes != tokens.sizes).any():
        raise DataError(f"{bin_path(prefix)}: not as many numbers in each document as there are tokens; {REPREPARE}")
    chunks = range(0, len(pair.tokens), CHUNK_TOKENS)
    highest = max(int(pair.tokens[start : start + CHUNK_TOKENS].max()) for start in chunks)
    if prefix.suffix == f".{LABELS}" and highest >= symbols:
        raise DataError(f"{bin_path(prefix)}: label {highest}, the vocabulary ends before; {REPREPARE}")
