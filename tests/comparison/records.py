"""Records, and runs, that differ from a trained one by what a test is about."""

import json
import shutil
from pathlib import Path

from dsllm.comparison.record import RunRecord


def changed(record: RunRecord, **updates) -> RunRecord:
    return record.model_copy(update=updates)


def of_another_arm(record: RunRecord, name: str = "other", **updates) -> RunRecord:
    return changed(record, name=name, arm={**record.arm, "model": {"name": name}}, **updates)


def of_problems(record: RunRecord, name: str, h90: int, seed: int = 1) -> RunRecord:
    accuracy = {str(k): 1.0 if k <= h90 else 0.4 for k in range(1, 9)}
    chance = dict.fromkeys(accuracy, 0.2)
    return of_another_arm(record, name, seed=seed, accuracy=accuracy, asked=dict.fromkeys(accuracy, 50), chance=chance)


def rewritten(run: Path, to: Path, change) -> Path:
    """A copy of a run whose records went through `change`, a list to a list."""
    shutil.copytree(run, to)
    lines = [json.loads(line) for line in (to / "metrics.jsonl").read_text().splitlines()]
    (to / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    return to
