"""What every benchmark says beside its figures: the machine, the versions, the median and the spread."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dsllm.machine import processor_name

RESULTS = Path(__file__).parent / "results"


def machine(*packages: str) -> dict[str, Any]:
    """The processor, its cores and memory, the GPUs that torch sees, and the versions of Python and `packages`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "gpus": _gpus() if "torch" in packages else [],
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def described(about: dict[str, Any]) -> str:
    """What `machine` found, for a table's head."""
    gpus = f"{len(about['gpus'])} × {about['gpus'][0]}, " if about["gpus"] else ""
    return f"{gpus}{about['processor']}, {about['cores']} cores, torch {about['versions']['torch']}"


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": len(values)}


def spread(values: dict[str, float], digits: int = 0) -> str:
    """`12.3 (11.9–13.0)` from a `summary`."""
    median, low, high = (f"{values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write(name: str, facts: dict[str, Any], text: str) -> None:
    """Print the table, and keep it and the figures as benchmarks/results/NAME.{md,json}."""
    keep(name, facts, text)
    print(text)


def keep(name: str, facts: dict[str, Any], text: str) -> None:
    """As `write`, without a word: what is done so far of a benchmark that takes long."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text + "\n")


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True).stdout.strip()
