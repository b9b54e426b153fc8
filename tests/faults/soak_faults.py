"""A run of the soak and what can happen to it: faults while it trains, and changes between two starts.

Each of the first kind starts the run, makes its fault happen and gives the seconds until every process had ended; each
of the second changes the run's files, or with how many ranks and at which ZeRO stage it starts next.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from dsllm.training.checkpoints import MARKER, complete_checkpoints
from dsllm.training.monitor import METRICS, read_metrics
from tests.forked import REPOSITORY, begin
from tests.training import killing
from tests.training.killing import END, FULL, POINTS

STEPS, PATIENCE = 24, 60.0
MODELS = {
    "plain": "model: {name: gpt2, n_layer: 2, n_head: 2, n_embd: 16, context: 16}",
    "growing": """model: {name: progressive, n_layer: 2, n_head: 2, n_embd: 16, context: 16}
growth: {operator: interpose, lora: {rank: 2}, policy: {name: schedule, at: [0.5]}, watch_every: 0,
         probe_samples: 4}""",
}
SAVES = [name for name in POINTS if name.startswith("the save")]


class LostRunError(Exception):
    """What a run did that it should not."""


@dataclass
class Tally:
    """What came of one kind of fault."""

    times: int = 0
    lost: int = 0
    to_stop: list[float] = field(default_factory=list)
    to_go_on: list[float] = field(default_factory=list)


@dataclass
class Soak:
    """All runs, and what they have met."""

    folder: Path
    recipes: dict[str, Path]
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    undisturbed: dict[str, dict[int, float]] = field(default_factory=dict)
    differences: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass
class Run:
    """One run's folder and draws; `ranks` and `stage` are those of its next start."""

    soak: Soak
    number: int
    draw: random.Random
    model: str = field(init=False)
    ranks: int = field(init=False)
    stage: int = field(init=False)
    met: list[str] = field(default_factory=list)
    overcome: bool = True

    def __post_init__(self) -> None:
        self.model = self.draw.choice(list(MODELS))
        self.ranks, self.stage = self.draw.choice([1, 1, 2, 2, 3]), self.draw.choice([0, 1, 2, 3])
        self.folder = self.soak.folder / f"run_{self.number:03d}"
        self.folder.mkdir()
        self.path = self.folder / "run"

    def arguments(self, *more: str) -> list[str]:
        recipe, stage = self.soak.recipes[self.model], REPOSITORY / "ds_configs" / f"zero{self.stage}.json"
        return [f"--config={recipe}", f"--run_dir={self.path}", f"--train.ds_config={stage}", *more]

    def start(self, disturb: "Callable[[list], None] | None" = None, *more: str) -> tuple[list[int], float]:
        """Train until all processes have ended by themselves: their exit codes, and the seconds since the fault."""
        processes = begin([killing.__file__, *self.arguments(*more)], self.folder / "log", self.ranks)
        begun = time.monotonic()
        try:
            if disturb is not None:
                disturb(processes)
                begun = time.monotonic()
            running = {process.sentinel: process for process in processes}
            while running:
                found = wait(list(running), timeout=PATIENCE)
                if not found:
                    raise LostRunError(f"{len(running)} of {len(processes)} processes did not end in {PATIENCE:g} s")
                for sentinel in found:
                    running.pop(sentinel).join()
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [process.exitcode for process in processes], time.monotonic() - begun

    def step(self) -> int:
        """The newest recorded step."""
        records = read_metrics(self.path) if (self.path / METRICS).exists() else []
        return max((record["step"] for record in records), default=0)

    def await_a_moment(self, processes: list) -> None:
        """Until one of the next steps is recorded, or some time within the start; or the run has ended."""
        if self.draw.random() < 0.3:
            time.sleep(self.draw.random() * 4)
            return
        before, begun = self.step(), time.monotonic()
        target = min(before + self.draw.randint(1, 6), STEPS)
        while (now := self.step()) < target and any(process.is_alive() for process in processes):
            if now > before:
                self.goes_on(time.monotonic() - begun)
            if time.monotonic() - begun > PATIENCE:
                raise LostRunError(f"step {target} was not reached")
            time.sleep(0.01)
        time.sleep(self.draw.random() * 0.05)

    def goes_on(self, seconds: float) -> None:
        """A step was made so long after a start: the last fault was overcome."""
        if self.met and not self.overcome:
            self.soak.tallies[self.met[-1]].to_go_on.append(seconds)
            self.overcome = True

    def meets(self, name: str) -> None:
        """A fault comes now."""
        self.met.append(name)
        self.overcome = False
        self.soak.tallies[name].times += 1


def expect(run: Run, codes: list[int], allowed: set[int]) -> None:
    """Every exit code is one of those allowed."""
    if not set(codes) <= allowed:
        raise LostRunError(f"exit codes {codes}, allowed are {sorted(allowed)}")


def send(process: ForkServerProcess, number: signal.Signals) -> None:
    """Send a signal, unless the process has just ended."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)  # type: ignore[arg-type]


def kill_one(run: Run, name: str) -> float | None:
    def fault(processes: list) -> None:
        run.await_a_moment(processes)
        run.meets(name)
        send(run.draw.choice(processes), signal.SIGKILL)

    codes, seconds = run.start(fault)
    expect(run, codes, {0, -9, -15, 75})
    return seconds


def kill_all(run: Run, name: str) -> float | None:
    def fault(processes: list) -> None:
        run.await_a_moment(processes)
        run.meets(name)
        for process in processes:
            send(process, signal.SIGKILL)

    codes, seconds = run.start(fault)
    expect(run, codes, {0, -9, -15, 75})
    return seconds


def stop_by(number: signal.Signals) -> Callable[[Run, str], float | None]:
    def fault(run: Run, name: str) -> float | None:
        def ask(processes: list) -> None:
            run.await_a_moment(processes)
            run.meets(name)
            send(run.draw.choice(processes), number)

        codes, seconds = run.start(ask)
        expect(run, codes, {0, 143, 75, -15, -10})  # 75 and below 0: it came while the ranks were still meeting
        if {0, 143} <= set(codes):
            raise LostRunError(f"exit codes {codes} after a signal")
        return seconds

    return fault


def kill_at(points: list[str]) -> Callable[[Run, str], float | None]:
    def fault(run: Run, name: str) -> float | None:
        point = run.draw.choice(points)
        codes, _ = run.start(None, f"{END}SIGKILL@{run.draw.randrange(run.ranks)}@{point}")
        expect(run, codes, {0, -9, -15, 75})
        if -9 in codes:  # else the run had no such moment
            run.meets(name)
        return None

    return fault


def full_disk(run: Run, name: str) -> float | None:
    codes, _ = run.start(None, f"{FULL}{run.draw.randint(300, 4000)}")
    expect(run, codes, {0, 2, 75})
    if set(codes) != {0}:
        run.meets(name)
    return None


def flip_a_bit(run: Run) -> None:
    found = complete_checkpoints(run.path)
    if len(found) > 1:  # the only one has none behind it to go on from: that start is refused, as it should be
        files = [path for path in found[-1].rglob("*") if path.is_file() and path.stat().st_nlink == 1]
        path = run.draw.choice(files)
        content = bytearray(path.read_bytes())
        content[run.draw.randrange(len(content))] ^= 1 << run.draw.randrange(8)
        path.write_bytes(content)


def cut_short(run: Run) -> None:
    found = complete_checkpoints(run.path)
    if len(found) > 1:
        (found[-1] / MARKER).unlink()
    metrics = run.path / METRICS
    if metrics.exists() and metrics.stat().st_size:
        os.truncate(metrics, metrics.stat().st_size - 1)


def other_ranks(run: Run) -> None:
    run.ranks = run.draw.choice([ranks for ranks in (1, 2, 3) if ranks != run.ranks])


def other_stage(run: Run) -> None:
    run.stage = run.draw.choice([stage for stage in range(4) if stage != run.stage])


STARTING = {
    "SIGKILL, one rank": kill_one,
    "SIGKILL, all ranks": kill_all,
    "SIGKILL within a save": kill_at(SAVES),
    "SIGKILL within a structural event": kill_at([name for name in POINTS if name not in SAVES]),
    "SIGTERM, one rank": stop_by(signal.SIGTERM),
    "SIGUSR1, one rank": stop_by(signal.SIGUSR1),
    "full disk": full_disk,
}
BETWEEN = {
    "bit flipped in the newest checkpoint": flip_a_bit,
    "marker gone, last record cut": cut_short,
    "other number of ranks": other_ranks,
    "other ZeRO stage": other_stage,
}


def prepare_text(folder: Path) -> Path:
    """Tokens for runs in `folder`."""
    command = [sys.executable, "-m", "data_prep", "tokenize", "--tokenizer", "bytes", "--source", "installed:mpmath"]
    subprocess.run([*command, "--out", folder / "data"], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return folder / "data"
