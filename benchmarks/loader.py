"""The loader alone: tokens/s, memory, and seconds to the batch of any step, up to 10^12 tokens.

    python benchmarks/loader.py [--tokens 1e8 1e10 1e12] [--data data/demo]

The large sets are simulated: sparse files, which read as zeros, under a true index of documents of a million tokens,
100 shards of one length. Every batch is asked for at a step that is drawn at random, so that none is near the last.
Pages of the files are the kernel's, which takes them back when it needs them: anonymous memory is what the loader
holds. A process per set; what a model consumes is in the tables of train and gpu.
"""

import argparse
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from resident import resident

from dsllm.data.batches import BatchLoader
from dsllm.data.dataset import TokenDataset
from dsllm.data.indexed import HEADER, MAGIC, VERSION, bin_path, idx_path

SHARDS, DOCUMENT = 100, 1_000_000
CONTEXT, SEQUENCES = 1024, 8
BATCHES = 20_000
UINT16 = 8
MIB = 2**20


def simulate(folder: Path, tokens: int) -> None:
    """A data folder of `tokens` zeros, as Megatron's pairs, that takes no place on the disk."""
    length = tokens // SHARDS
    sizes = np.full(-(-length // DOCUMENT), DOCUMENT, "<i4")
    sizes[-1] = length - DOCUMENT * (len(sizes) - 1)
    offsets = np.arange(len(sizes), dtype="<i8") * DOCUMENT * 2
    documents = np.arange(len(sizes) + 1, dtype="<i8")
    header = HEADER.pack(MAGIC, VERSION, UINT16, len(sizes), len(documents))
    index = header + sizes.tobytes() + offsets.tobytes() + documents.tobytes()
    for shard in range(SHARDS):
        prefix = folder / f"train_{shard:05d}"
        idx_path(prefix).write_bytes(index)
        with bin_path(prefix).open("wb") as file:
            file.truncate(2 * length)


def measure(path: Path, masked: bool) -> dict[str, Any]:
    """Open a data folder and read batches of steps here and there."""
    begun = time.perf_counter()
    source = TokenDataset(path, "train", CONTEXT)
    opened = time.perf_counter() - begun
    options = {"global_batch_size": SEQUENCES, "micro_batch_size": SEQUENCES, "rank": 0, "world_size": 1}
    loader = BatchLoader(source, seed=1, mask_documents=masked, **options)
    steps, seconds, held = random.Random(1), [], []
    for number in range(BATCHES):
        step = steps.randrange(len(source) // SEQUENCES)
        begun = time.perf_counter()
        loader.batch(step * SEQUENCES)
        seconds.append(time.perf_counter() - begun)
        if number in (BATCHES // 10, BATCHES - 1):
            held.append(resident("RssAnon") / MIB)
    ordered = sorted(seconds)
    return {
        "open_ms": 1000 * opened,
        "first_ms": 1000 * seconds[0],
        "p50_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * ordered[int(0.99 * len(ordered))],
        "tokens_per_second": SEQUENCES * CONTEXT / statistics.median(seconds),
        "anonymous_mib": held,
        "mapped_mib": resident("RssFile") / MIB,
    }


def _apart(path: Path, masked: bool) -> dict[str, Any]:
    """`measure` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (path, masked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, nargs="*", default=[1e8, 1e10, 1e12])
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="a real one, measured too if it is there")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for masked in (False, True):
        if arguments.data.is_dir():
            found.append({"data": str(arguments.data), "masked": masked, **_apart(arguments.data, masked)})
        for tokens in map(int, arguments.tokens):
            with tempfile.TemporaryDirectory() as folder:
                simulate(Path(folder), tokens)
                said = f"10^{np.log10(tokens):.0f} tokens"
                found.append({"data": said, "masked": masked, **_apart(Path(folder), masked)})
    rows = [
        [
            row["data"],
            "yes" if row["masked"] else "no",
            f"{row['open_ms']:.1f}",
            f"{row['first_ms']:.2f}",
            f"{row['p50_ms']:.3f}",
            f"{row['p99_ms']:.3f}",
            f"{row['tokens_per_second'] / 1e6:,.0f} M",
            " → ".join(f"{held:.0f}" for held in row["anonymous_mib"]),
            f"{row['mapped_mib']:.0f}",
        ]
        for row in found
    ]
    about = report.machine("torch", "numpy")
    what = f"{SEQUENCES} × {CONTEXT} tokens a batch, one thread, {BATCHES:,} batches of random steps"
    text = f"{what}; {report.described(about)}"
    columns = ["data", "document ids", "opening, ms", "first batch, ms", "p50, ms", "p99, ms", "tokens/s"]
    header = [*columns, f"anonymous MiB after {BATCHES // 10:,} and {BATCHES:,}", "mapped MiB"]
    report.write("loader", {"machine": about, "sets": found}, f"{text}\n\n{report.table(header, rows)}")


if __name__ == "__main__":
    main()
