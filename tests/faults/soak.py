"""Many short runs to which something happens again and again: what was lost?

    python tests/faults/soak.py [--runs 200] [--seed 1] [--out FILE]        (`make soak`)

A run trains a tiny model, a plain one or one that grows under adapters, and meets one to four faults, drawn by the
seed: a kill of one rank or of all, a signal, a kill at a named point of a save or of a structural event, a full disk, a
flipped bit in the newest checkpoint, a checkpoint or a record cut short, another number of ranks, another ZeRO stage.
After each the same command is started again. There is no launcher: every rank has to end by itself. A run survives if
each start either goes on or ends as that fault should, and if in the end every step stands in the records once, with
the losses of a run that nothing happened to.

Prints a table by fault, one by change of ranks and stage with the largest difference in loss, and a line for each run
that was lost, whose folder is kept.
"""

import argparse
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dsllm.training.monitor import read_metrics
from tests.faults.soak_faults import (
    BETWEEN,
    MODELS,
    STARTING,
    STEPS,
    LostRunError,
    Run,
    Soak,
    expect,
    prepare_text,
)


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
    data = prepare_text(folder)
    recipes = {}
    for name, sections in MODELS.items():
        recipes[name] = folder / f"{name}.yaml"
        recipes[name].write_text(
            f"""run_dir: unused
{sections}
data: {{path: {data}}}
train: {{steps: {STEPS}, micro_batch_size: 2, global_batch_size: 12, lr: 1.0e-2, precision: fp32, eval_every: 6,
        eval_samples: 4, test_samples: 4, checkpoint_every: 2, keep_checkpoints: 3, lost_after: 10, meet_within: 10}}
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
