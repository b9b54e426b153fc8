"""Many short runs to which something happens again and again: what was lost?

    python tests/faults/soak.py [--runs 200] [--seed 1] [--out FILE]        (`make soak`)

A run trains a tiny model, a plain one or one that grows under adapters, and meets one to four faults, drawn by the
seed: a kill of one rank or of all, a signal, a kill at a named point of a save or of a structural event, a full disk, a
flipped bit in the newest checkpoint, a checkpoint or a record cut short, another number of ranks, another ZeRO stage.
After each the same command is started again. It survives if each start either goes on or ends as that fault should,
and if in the end every step stands in the records once, with the losses of a run that nothing happened to.

Prints a table by fault, one by change of ranks and stage with the largest difference in loss, and a line for each run
that was lost, whose folder is kept.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from dsllm.training.checkpoints import MARKER, complete_checkpoints  # noqa: E402
from dsllm.training.monitor import METRICS, read_metrics  # noqa: E402
from tests.forked import begin  # noqa: E402
from tests.training import killing  # noqa: E402
from tests.training.killing import END, FULL, POINTS  # noqa: E402

STEPS, PATIENCE, ALONE = 24, 60.0, 20.0
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
            ended = len(running)
            while running:
                # Ranks that have met end together by themselves. One that waits for others to come is ended by the
                # launcher, whose part is played here.
                patience = PATIENCE if len(running) == ended else ALONE
                found = wait(list(running), timeout=patience)
                if not found and len(running) < ended and patience == ALONE:
                    for process in running.values():
                        process.terminate()
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


# The faults. Each of the first kind starts the run and gives the seconds from the fault to the end of all processes.


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


def soak_one(soak: Soak, number: int, seed: int) -> str | None:
    """One run to its end; what was lost, if anything was."""
    run = Run(soak, number, random.Random(f"{seed} {number}"))
    began = run.ranks, run.stage
    try:
        for _ in range(run.draw.randint(1, 4)):
            if run.step() == STEPS:
                break
            name = run.draw.choice(list(STARTING))
            seconds = STARTING[name](run, name)
            if seconds is not None:
                soak.tallies[name].to_stop.append(seconds)
            if run.draw.random() < 0.5:
                run.meets(name := run.draw.choice(list(BETWEEN)))
                BETWEEN[name](run)
        before, begun = run.step(), time.monotonic()

        def watch(processes: list) -> None:
            while any(process.is_alive() for process in processes) and run.step() <= before < STEPS:
                time.sleep(0.02)
            if before < run.step():
                run.goes_on(time.monotonic() - begun)

        codes, _ = run.start(watch)
        expect(run, codes, {0})
        check(run)
        key = f"{began[0]} → {run.ranks}", f"{began[1]} → {run.stage}"
        soak.differences[key] = max(soak.differences.get(key, 0.0), difference(run))
    except LostRunError as error:
        for name in run.met[-1:]:
            soak.tallies[name].lost += 1
        return f"run {number} ({run.model}): {', '.join(run.met)}: {error}; {run.folder}"
    shutil.rmtree(run.folder)
    return None


def losses(path: Path) -> list[tuple[int, float]]:
    """Of training steps, in the order of the records."""
    return [(record["step"], record["loss"]) for record in read_metrics(path) if record["kind"] == "train"]


def difference(run: Run) -> float:
    """The largest from the undisturbed losses, relative."""
    return max(abs(loss / run.soak.undisturbed[run.model][step] - 1) for step, loss in losses(run.path))


def check(run: Run) -> None:
    """Every step once, and the losses of the run that nothing happened to."""
    steps = [step for step, _ in losses(run.path)]
    if steps != list(range(1, STEPS + 1)):
        raise LostRunError(f"the records have the steps {steps}")
    if difference(run) > 1e-5:
        raise LostRunError(f"losses differ by {difference(run):.1e}")


def prepare(folder: Path) -> Soak:
    """Text, recipes, and a run of each that nothing happens to."""
    command = [sys.executable, "-m", "data_prep", "tokenize", "--tokenizer", "bytes", "--source", "installed:mpmath"]
    subprocess.run([*command, "--out", folder / "data"], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    recipes = {}
    for name, sections in MODELS.items():
        recipes[name] = folder / f"{name}.yaml"
        recipes[name].write_text(
            f"""run_dir: unused
{sections}
data: {{path: {folder / "data"}}}
train: {{steps: {STEPS}, micro_batch_size: 2, global_batch_size: 12, lr: 1.0e-2, precision: fp32, eval_every: 6,
        eval_samples: 4, test_samples: 4, checkpoint_every: 2, keep_checkpoints: 3, lost_after: 10}}
monitor: {{log_every: 1, tensorboard: false}}
"""
        )
    soak = Soak(folder, recipes)
    for number, name in enumerate(MODELS):
        run = Run(soak, 900 + number, random.Random(0))
        run.model, run.ranks, run.stage = name, 1, 0
        codes, _ = run.start()
        expect(run, codes, {0})
        soak.undisturbed[name] = dict(losses(run.path))
    return soak


def table(soak: Soak, runs: int, lost: list[str], seconds: float) -> str:
    """What came of it, for people."""

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} ({max(values):.1f})" if values else ""

    lines = [
        f"{runs} runs in {seconds / 60:.0f} minutes, {sum(t.times for t in soak.tallies.values())} faults: "
        f"{runs - len(lost)} survived, {len(lost)} lost.",
        "",
        "| fault | times | survived | lost | seconds to stop: median (most) | seconds to go on: median (most) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in (*STARTING, *BETWEEN):
        of = soak.tallies[name]
        cells = [name, of.times, of.times - of.lost, of.lost, spread(of.to_stop), spread(of.to_go_on)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| ranks | ZeRO stage | largest difference in loss, relative |", "| --- | --- | --- |"]
    lines += [f"| {ranks} | {stage} | {value:.1e} |" for (ranks, stage), value in sorted(soak.differences.items())]
    return "\n".join([*lines, "", *(f"Lost: {line}" for line in lost)]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "soak.md")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak."))
    soak, lost, begun = prepare(folder), [], time.monotonic()
    for number in itertools.count(1):
        found = soak_one(soak, number, arguments.seed)
        if found:
            lost.append(found)
            print(found, flush=True)
        if number % 10 == 0 or number == arguments.runs:
            text = table(soak, number, lost, time.monotonic() - begun)
            arguments.out.parent.mkdir(exist_ok=True)
            arguments.out.write_text(text)
            print(f"{number} of {arguments.runs}, {len(lost)} lost", flush=True)
        if number == arguments.runs:
            break
    print(text)
    if lost:
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
