"""What a structural event holds in memory at ZeRO-3, measured by what the benchmark measures with."""

import importlib.util
from pathlib import Path

import pytest

from tests.launching import REPOSITORY

NOISE = 8
"""MiB that an allocator keeps; a rank's shard is twenty times as much."""


PARTS = ("saving", "probing", "growing")


@pytest.mark.slow(seconds=80)
def test_saving_and_growing_at_zero3_hold_two_tensors_more_than_before_and_never_a_model(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a program frees counts as held while its allocator keeps it: a few tensors in each thread's heap, now and
    # then. Blocks of their own go back at once.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
    spec = importlib.util.spec_from_file_location("growth_benchmark", REPOSITORY / "benchmarks" / "growth.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    model = {"n_layer": 4, "n_head": 8, "n_embd": 768, "context": 32}
    growth = {"preset": "diverge_consolidate", "diverge_share": 0.34, "policy": {"name": "schedule", "at": [0.25]}}
    benchmark.launch(tmp_path, model, {**growth, "lora": {"rank": 16}}, stage=3, steps=8, data=str(data_folder))
    rows = benchmark.extra_memory(tmp_path)
    assert [(row["what"], row["phase"], row["rank"]) for row in rows] == [
        (what, phase, rank)
        for rank in range(2)
        for what, phase in (
            ("beginning", "full"),
            *((part, "full") for part in PARTS),
            ("beginning", "diverge"),
            *((part, "diverge") for part in PARTS),
            ("beginning", "consolidate"),
        )
    ]
    for row in rows:
        # Probing is a forward pass, and rises by what DeepSpeed fetches ahead, as in every step.
        if row["what"] in ("saving", "growing"):
            assert row["extra_mib"] < 2 * row["largest_mib"] + NOISE < row["shard_mib"]
        if row["what"] == "beginning":
            assert row["extra_mib"] < row["bound_mib"]
