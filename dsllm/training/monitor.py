"""What a run says while it trains: records in metrics.jsonl, curves on its boards, a line on the terminal.

    {"kind": "train", "step": 100, "tokens": 819200, "loss": 5.31, "lr": 0.001, …}
    {"kind": "eval", "split": "val", "step": 100, "tokens": 819200, "loss": 5.4, "bits_per_byte": 2.1, …}
    {"kind": "event", "step": 100, "event": "resume", "time": "2026-01-31T12:00:00+00:00", …}

Resuming at step 100 first drops what an earlier start recorded after it, so that no point is there twice.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from dsllm.config import MonitorConfig
from dsllm.data.files import os_errors_named, write_atomically
from dsllm.errors import TrainingError
from dsllm.json_file import parse_json
from dsllm.training.boards import Board, open_boards
from dsllm.training.chain_curve import picture
from dsllm.training.continuations import Continuation
from dsllm.training.evaluation import Evaluation
from dsllm.training.progress import Progress

METRICS = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """A run's records in order, without a last line that a kill cut short and without `damaged_lines`."""
    return [record for record in map(_record, _lines(run_dir)) if record is not None]


def damaged_lines(run_dir: Path) -> list[int]:
    """The numbers, from 1, of the lines of a run's records that are none; a last one that a kill cut short is not."""
    numbered = list(enumerate(_lines(run_dir), start=1))
    return [
        number
        for number, line in numbered
        if _record(line) is None and (line.endswith(b"\n") or number < len(numbered))
    ]


def _lines(run_dir: Path) -> Iterator[bytes]:
    path = run_dir / METRICS
    if path.exists():
        with os_errors_named(path), path.open("rb") as file:
            yield from file


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line says, or None if it is no record as `Monitor` writes them: then something else has changed it."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("kind"), str):
        return None
    needed = {"eval": ("split",), "growth": ("checkpoint", "plan")}.get(record["kind"], ())
    return record if all(isinstance(record.get(key), str) for key in needed) else None


@contextmanager
def _unwritable_is_said(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{run_dir}: its records cannot be written ({error.strerror or error}); free disk space, or make it "
            f"writable. The same command goes on from the newest checkpoint"
        ) from None


class Monitor:
    """Writes the records of a run from step `progress.step` on; made on rank 0 alone.

    Each method raises `TrainingError` if it cannot: a run whose records are lost is no run.
    """

    def __init__(self, run_dir: Path, config: MonitorConfig, progress: Progress, steps: int):
        self.run_dir = run_dir
        self.steps = steps
        with _unwritable_is_said(run_dir):
            self._open(config, progress)

    def _open(self, config: MonitorConfig, progress: Progress) -> None:
        run_dir = self.run_dir
        kept = [record for record in read_metrics(run_dir) if record["step"] <= progress.step]
        if progress.step == 0:  # nothing of the earlier start is left that could remember its evaluation
            kept = [record for record in kept if record["kind"] == "event"]
        kept = [record for record in kept if record["kind"] != "ledger"]  # written again at the end
        self._evaluated = {(r["split"], r["step"]) for r in kept if r["kind"] == "eval"}
        self._last: dict[str, float] = {}
        for record in kept:
            if record["kind"] == "eval":
                self._note_last(record)
        self._grown = {(r["checkpoint"], r["plan"]) for r in kept if r["kind"] == "growth"}
        self._replace(run_dir / METRICS, kept)
        self._file = (run_dir / METRICS).open("a", encoding="utf-8")
        self._boards: list[Board] = open_boards(run_dir, config, progress)

    def begin(self, progress: Progress, resumed: bool, facts: dict[str, Any]) -> None:
        """Record a start or a resumption and say what begins, what changed and what was passed over."""
        self.event(progress, "resume" if resumed else "start", **facts)
        verb = "is trained already to" if progress.step >= self.steps else "resumes at" if resumed else "starts at"
        print(f"{self.run_dir}: {verb} step {progress.step} of {self.steps}")
        print(
            f"  {facts['parameters']:,} parameters, ranks: {facts['world_size']}, ZeRO {facts['zero_stage']}, "
            f"{facts['precision']}, {facts['tokens_per_step']:,} tokens a step"
        )
        for label in ("note", "changed", "set_aside", "damaged", "incomplete"):
            if facts[label]:
                text = "; ".join(facts[label]) if isinstance(facts[label], list) else facts[label]
                print(f"  {label.replace('_', ' ')}: {text}")
        for place in (board.place for board in self._boards):
            if place:
                print(f"  {place}", flush=True)

    def train(self, progress: Progress, values: dict[str, float | None]) -> None:
        """Record a training step: loss (nats per token), lr, grad_norm, tokens_per_second, step_seconds, …"""
        self.record("train", progress, {**values, "flops": progress.flops})
        self.scalars("train", progress, values)
        left = (self.steps - progress.step) * (values["step_seconds"] or 0.0)
        print(
            f"step {progress.step:>{len(str(self.steps))}}/{self.steps}  loss {values['loss']:.4f}  "
            f"lr {values['lr']:.2e}  {values['tokens_per_second']:,.0f} tokens/s  {_duration(left)} left",
            flush=True,
        )

    def evaluation(self, progress: Progress, split: str, result: Evaluation, seconds: float) -> None:
        """Record what an evaluation gave and the seconds it took."""
        values: dict[str, float | None] = {
            "loss": result.loss,
            "bits_per_byte": result.bits_per_byte,
            "perplexity": result.perplexity,
        }
        counts = {"scored_tokens": result.tokens, "samples": result.samples}
        facts: dict[str, Any] = {"split": split, **values, **counts, "seconds": seconds}
        if result.chains is not None:
            facts |= result.chains.record()
            values |= {f"accuracy_{length}": result.chains.share(length) for length in result.chains.lengths}
            values |= {"h90": result.chains.h90, "area": result.chains.area}
        self.record("eval", progress, facts)
        self.scalars(split, progress, values)
        self._note_last(facts)
        if result.chains is not None and self._boards:
            self.image(f"{split}/accuracy_by_chain", progress, picture(result.chains))
        self._evaluated.add((split, progress.step))
        print(f"{split} at step {progress.step}: {result}", flush=True)

    def continuations(self, progress: Progress, written: Sequence[Continuation], seconds: float) -> None:
        """Record what the model wrote at an evaluation, and the seconds that all of it took."""
        for number, continuation in enumerate(written, start=1):
            facts = {"prompt": continuation.prompt, "text": continuation.text, "seconds": seconds}
            self.record("text", progress, facts)
            self.text(f"continuations/{number}", progress, continuation.markdown())

    def _note_last(self, facts: Mapping[str, Any]) -> None:
        """Keep what an evaluation gave: the last of each split is what came of the run."""
        for name in ("loss", "bits_per_byte", "h90", "area"):
            if isinstance(facts.get(name), (int, float)):
                self._last[f"last/{facts['split']}_{name}"] = facts[name]

    def forget_evaluations(self) -> None:
        """What is recorded was measured under another configuration."""
        self._evaluated.clear()

    def knows(self, split: str, step: int) -> bool:
        """Whether a split's evaluation at this step is recorded already."""
        return (split, step) in self._evaluated

    def event(self, progress: Progress, event: str, **facts: Any) -> None:
        """Record a start, a resumption, a skipped step, a signal, an end."""
        self.record("event", progress, {"event": event, "time": datetime.now(timezone.utc).isoformat(), **facts})

    def alarm(self, progress: Progress, words: str) -> None:
        """Record an alarm and say it."""
        self.event(progress, "alarm", words=words)
        print(words, flush=True)

    def record(self, kind: str, progress: Progress, values: dict[str, Any]) -> None:
        """Append a record of this step; JSON knows no NaN, a number that is not finite is null."""
        line = {"kind": kind, "step": progress.step, "tokens": progress.tokens, **values}
        with _unwritable_is_said(self.run_dir):
            self._file.write(json.dumps(_finite(line), allow_nan=False, default=str) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Write the records down to the disk: before a checkpoint counts their steps."""
        with _unwritable_is_said(self.run_dir):
            os.fsync(self._file.fileno())

    def growth(self, progress: Progress, receipt: dict[str, Any], words: str) -> None:
        """Record a structural event once; for the boards its receipt and a marker at its step."""
        print(words, flush=True)
        if (receipt["checkpoint"], receipt["plan"]) in self._grown:
            return
        self.record("growth", progress, receipt)
        self.scalars("growth", progress, {key: receipt[key] for key in ("layers_after", "blocks_after", "delta_loss")})
        self.text("growth/receipt", progress, f"```\n{words}\n```")

    def scalars(self, group: str, progress: Progress, values: Mapping[str, float | None]) -> None:
        """Points of this step for the boards, each in the curve `group/name`; None is left out."""
        given = {name: value for name, value in values.items() if value is not None}
        with _unwritable_is_said(self.run_dir):
            for board in self._boards:
                board.scalars(group, progress, given)

    def image(self, name: str, progress: Progress, pixels: np.ndarray) -> None:
        """A picture of this step for the boards: (H, W, 3) uint8."""
        with _unwritable_is_said(self.run_dir):
            for board in self._boards:
                board.image(name, progress, pixels)

    def text(self, name: str, progress: Progress, markdown: str) -> None:
        """A text of this step for the boards."""
        with _unwritable_is_said(self.run_dir):
            for board in self._boards:
                board.text(name, progress, markdown)

    def end(self, progress: Progress, asked: Mapping[str, Any]) -> None:
        """Record the end of a run that was `asked` for so, and close."""
        self.event(progress, "end")
        with _unwritable_is_said(self.run_dir):
            for board in self._boards:
                board.outcome(progress, asked, self._last)
        self.close()

    def close(self) -> None:
        with _unwritable_is_said(self.run_dir):
            self._file.close()
            for board in self._boards:
                board.close()

    @staticmethod
    def _replace(path: Path, records: list[dict[str, Any]]) -> None:
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def _finite(value: Any) -> Any:
    """The value with None for each number in it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
