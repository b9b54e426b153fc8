"""The ways to make tokens that benchmarks/prep.py compares; each runs alone in a fresh process.

    python benchmarks/prep_contenders.py tiktoken installed:sympy OUT      {"tokens": 9000123, "encode_seconds": 2.1, …}

All read the same documents of the same source and know the same GPT-2 vocabulary. `encode_seconds` is from documents in
memory to tokens in memory with nothing warmed up: the first document meets empty caches.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.batches import batches
from data_prep.encoding import encode_batches
from data_prep.fast import FastEncoder, fastest_encoder
from data_prep.prepare import BATCH_BYTES, Request, prepare
from data_prep.sources.opening import open_source
from data_prep.splits import SplitRule
from dsllm.tokenizer.byte_pair import gpt2

CORES = len(os.sched_getaffinity(0))
END_OF_TEXT = 50256


def _documents(source: str) -> list[str]:
    groups = batches(open_source(source), None, batch_bytes=BATCH_BYTES, limit=None, errors="skip")
    return [text for group in groups for text in group.texts]


def data_prep(source: str, out: Path) -> dict[str, Any]:
    """`data_prep tokenize` as it stands: reading, splits, checksums, indices, manifest."""
    manifest = prepare(Request(source), out, workers=CORES).manifest
    return {"tokens": sum(shard.tokens for shard in manifest.shards)}


def data_prep_encoding(source: str, out: Path) -> dict[str, Any]:
    """What `data_prep tokenize` does between reading and writing."""
    tokenizer = gpt2()
    encoder, _ = fastest_encoder(tokenizer)
    assert isinstance(encoder, FastEncoder)
    groups = list(batches(open_source(source), None, batch_bytes=BATCH_BYTES, limit=None, errors="skip"))
    begun = time.perf_counter()
    encoded = list(
        encode_batches(
            groups,
            encoder,
            SplitRule((0.8, 0.1, 0.1)),
            end_of_text=END_OF_TEXT,
            dtype=tokenizer.dtype,
            workers=CORES,
        )
    )
    return {"encode_seconds": time.perf_counter() - begun, "tokens": sum(group.tokens for group in encoded)}


def tiktoken(source: str, out: Path) -> dict[str, Any]:
    """`encode_ordinary_batch` with a thread per core, then one flat uint16 file."""
    encoding = gpt2().encoding
    texts = _documents(source)
    begun = time.perf_counter()
    documents = encoding.encode_ordinary_batch(texts, num_threads=CORES)
    seconds = time.perf_counter() - begun
    with (out / "train.bin").open("wb") as file:
        for ids in documents:
            file.write(np.array([*ids, END_OF_TEXT], np.uint16).tobytes())
    return {"encode_seconds": seconds, "tokens": sum(map(len, documents)) + len(documents)}


@cache
def _encoding() -> Any:
    return gpt2().encoding


def _process(row: dict[str, str]) -> dict[str, Any]:
    ids = _encoding().encode_ordinary(row["text"])
    ids.append(END_OF_TEXT)
    return {"ids": ids, "len": len(ids)}


def datasets_map(source: str, out: Path) -> dict[str, Any]:
    """The pipeline of nanoGPT's prepare.py: `datasets.map` with a process per core, then a memory-mapped file."""
    os.environ["HF_DATASETS_CACHE"] = str(out / "cache")
    import datasets

    datasets.disable_progress_bars()
    # On disk first, as a data set that was downloaded is: an in-memory table would be copied to every process. nanoGPT
    # finds its text in that form, so making it is not part of the command that is measured.
    setup = time.perf_counter()
    datasets.Dataset.from_dict({"text": _documents(source)}).save_to_disk(out / "documents")
    rows = datasets.load_from_disk(out / "documents")
    begun = time.perf_counter()
    setup = begun - setup
    tokenized = rows.map(_process, remove_columns=["text"], num_proc=CORES)
    seconds = time.perf_counter() - begun
    total = int(np.sum(tokenized["len"], dtype=np.uint64))
    file = np.memmap(out / "train.bin", dtype=np.uint16, mode="w+", shape=(total,))
    at, parts = 0, min(1024, len(tokenized))
    for i in range(parts):
        part = tokenized.shard(num_shards=parts, index=i, contiguous=True).with_format("numpy")
        ids = np.concatenate(part["ids"])
        file[at : at + len(ids)] = ids
        at += len(ids)
    file.flush()
    return {"encode_seconds": seconds, "setup_seconds": setup, "tokens": total}


CONTENDERS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "data_prep": data_prep,
    "data_prep_encoding": data_prep_encoding,
    "tiktoken": tiktoken,
    "datasets_map": datasets_map,
}

if __name__ == "__main__":
    name, corpus, folder = sys.argv[1:]
    # Not as a part of __main__, whose functions `datasets` would send to its processes by value, vocabulary and all.
    from prep_contenders import CONTENDERS as by_name

    print(json.dumps(by_name[name](corpus, Path(folder))))
