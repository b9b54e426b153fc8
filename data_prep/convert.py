"""Data folders to other projects' token files, and those to data folders.

    data folder ──▶ nanogpt    OUT/train.bin  OUT/val.bin  …        raw uint16
    data folder ──▶ llmc       OUT/train_00000.bin  …               llm.c's and modded-nanogpt's header
    any of them ──▶ megatron   OUT/train_00000.bin, .idx  …, manifest.json: a data folder

Which split a file belongs to, its name says: train.bin, fineweb_val_000000.bin; another name is train. `OUT` appears
whole or not at all.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_prep.splits import NAMES
from dsllm.data.files import os_errors_named, sync_to_disk
from dsllm.data.foreign import import_flat, is_llmc, read_llmc, read_nanogpt, write_llmc, write_nanogpt
from dsllm.data.indexed import IndexedPair, IndexedWriter, PairSummary, idx_path
from dsllm.data.manifest import MANIFEST_NAME, Manifest, ShardInfo
from dsllm.errors import DataError
from dsllm.tokenizer import Tokenizer, load_tokenizer

FORMATS = ("megatron", "nanogpt", "llmc")
CHUNK_TOKENS = 1 << 22
CHUNK_DOCUMENTS = 1 << 12


def convert(source: Path, to: str, out: Path, tokenizer: str = "gpt2") -> str:
    """Converts a data folder, or token files without a manifest.

    Args:
        source: a data folder; a `.bin`; or a folder of such.
        to: megatron, nanogpt or llmc.
        out: a folder that does not exist or is empty.
        tokenizer: of files without a manifest.

    Returns:
        What was written, in a sentence.

    Raises:
        DataError: a format that is unknown or that it has already, files that are broken or of another tokenizer, an
            `out` with something in it, a full disk. Nothing is left in `out`.
    """
    if to not in FORMATS:
        raise DataError(f"--to {to}: no such format; take {', '.join(FORMATS)}")
    if not source.exists() and not source.with_name(source.name + ".bin").exists():
        raise DataError(f"{source}: no such file or folder; check the path")
    if (source / MANIFEST_NAME).exists():
        manifest = Manifest.read(source)
        if to == "megatron":
            prefix = source / (manifest.shards[0].name if manifest.shards else "train_00000")
            raise DataError(f"{source}: its shards are Megatron pairs already; give Megatron the prefix {prefix}")
        with _whole_folder(out) as draft:
            for split in manifest.splits:
                if to == "nanogpt":
                    write_nanogpt(source, split, draft / f"{split}.bin")
                else:
                    write_llmc(source, split, draft)
        return f"{out}: {', '.join(manifest.splits)} of {source} as {to}"
    if to != "megatron":
        raise DataError(f"{source}: no data folder; make one first with --to megatron, then convert that to {to}")
    known = load_tokenizer(tokenizer)
    with _whole_folder(out) as draft:
        manifest = _import(source, draft, known)
        manifest.write(draft)
    tokens = sum(shard.tokens for shard in manifest.shards)
    return f"{out}: a data folder of {len(manifest.shards)} shards, {tokens:,} tokens"


def _import(source: Path, draft: Path, tokenizer: Tokenizer) -> Manifest:
    shards: list[ShardInfo] = []
    empty = 0
    token_bytes = tokenizer.token_bytes()
    for split in NAMES:
        for i, file in enumerate(_files_of(source, split)):
            prefix = draft / f"{split}_{i:05d}"
            written, left_out = _import_file(file, prefix, tokenizer)
            text_bytes = _text_bytes(prefix, file, tokenizer, token_bytes)
            shards.append(
                ShardInfo(
                    split=split,
                    name=prefix.name,
                    tokens=written.tokens,
                    documents=written.documents,
                    text_bytes=text_bytes,
                    bin_sha256=written.bin_sha256,
                    idx_sha256=written.idx_sha256,
                )
            )
            empty += left_out
    if not shards:
        raise DataError(f"{source}: no .bin in it; give a token file of Megatron, nanoGPT or llm.c, or their folder")
    return Manifest(
        complete=True,
        tokenizer=tokenizer.info,
        source={"source": str(source), "converted": True, "counts": {"empty": empty}},
        split_rule={"by": "the files' names"},
        shards=shards,
    )


def _files_of(source: Path, split: str) -> list[Path]:
    if source.is_dir():
        files = sorted(source.glob("*.bin"))
    else:
        files = [source if source.suffix == ".bin" else source.with_name(source.name + ".bin")]
    return [file for file in files if _split_of(file) == split]


def _split_of(file: Path) -> str:
    words = re.split(r"[^A-Za-z]+", file.stem)
    return next((split for split in NAMES if split in words), "train")


def _import_file(file: Path, prefix: Path, tokenizer: Tokenizer) -> tuple[PairSummary, int]:
    if idx_path(file.with_suffix("")).exists():
        return _copy_pair(IndexedPair(file.with_suffix("")), prefix, tokenizer), 0
    if tokenizer.dtype != np.uint16:
        raise DataError(f"{file}: holds uint16 tokens, {tokenizer.info} needs more; name the tokenizer that made it")
    end_of_text = tokenizer.end_of_text
    flat = read_llmc(file, end_of_text) if is_llmc(file) else read_nanogpt(file, end_of_text)
    imported = import_flat(flat, prefix)
    return imported.pair, imported.empty_documents


def _copy_pair(pair: IndexedPair, prefix: Path, tokenizer: Tokenizer) -> PairSummary:
    with IndexedWriter(prefix, tokenizer.dtype) as writer:
        for start in range(0, len(pair), CHUNK_DOCUMENTS):
            ends = pair.document_ends(start, start + CHUNK_DOCUMENTS)
            begin = int(pair.document_ends(start - 1, start)[0]) if start else 0
            tokens, sizes = pair.tokens[begin : int(ends[-1])], np.diff(ends, prepend=begin)
            open_ended = np.flatnonzero(pair.tokens[ends - 1] != tokenizer.end_of_text)
            if len(open_ended):
                raise DataError(
                    f"{pair.prefix}.bin: document {start + int(open_ended[0])} does not end with end-of-text "
                    f"({tokenizer.end_of_text} of {tokenizer.name}); write it with --append-eod, or name its tokenizer"
                )
            writer.add_many(tokens, sizes)
        return writer.finish()


def _text_bytes(prefix: Path, file: Path, tokenizer: Tokenizer, token_bytes: np.ndarray) -> int:
    tokens, total = IndexedPair(prefix).tokens, 0
    for start in range(0, len(tokens), CHUNK_TOKENS):
        chunk = tokens[start : start + CHUNK_TOKENS]
        if (highest := int(chunk.max())) >= tokenizer.size:
            raise DataError(f"{file}: token id {highest}, but {tokenizer.info} ends before; name the tokenizer it has")
        total += int(token_bytes[chunk].sum())
    return total


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well, and is gone otherwise."""
    with os_errors_named(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out}: exists and is not an empty folder; take another --out")
        draft = out.with_name(out.name + ".tmp")
        _remove(draft)
        draft.mkdir(parents=True)
    try:
        yield draft
        with os_errors_named(out):
            draft.replace(out)
            sync_to_disk(out.parent)
    finally:
        _remove(draft)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
