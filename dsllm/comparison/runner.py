"""The runs of a study, made through the ordinary launcher, several side by side if there is room.

A finished run leaves a record of some kilobytes in OUT/records. A run that has one is not made again, so the same
command goes on, on another machine too if OUT is there; a run that was broken off is resumed.
"""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import yaml

from dsllm.comparison.arms import Arm, arms_of
from dsllm.comparison.measuring import measured
from dsllm.comparison.rates import best_rate, next_rate
from dsllm.comparison.record import Diverged, RunRecord, arm_of
from dsllm.comparison.study import Study, with_steps
from dsllm.config import RunConfig
from dsllm.data.files import os_errors_named
from dsllm.errors import ConfigError, UserError
from dsllm.section import raise_problems
from dsllm.training.run_folder import differences

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A run of a study."""

    arm: str
    seed: int
    rate: float | None
    flops: float | None
    name: str
    """Of its folder and its record."""


class Runner:
    """Makes the runs of a study, as far as they are not made yet.

    Args:
        work: folder of the runs.
        out: `out`/records keeps their records.
        ranks: processes of each run.
        jobs: runs side by side; the cores are shared out among them.
        say: is told of each run that has been made.
    """

    def __init__(
        self, study: Study, work: Path, out: Path, ranks: int, say: Callable[[str], None] = print, jobs: int = 1
    ):
        self.study, self.work, self.records, self.ranks, self.say = study, work, out / "records", ranks, say
        self.jobs = jobs
        with os_errors_named(self.records):
            self.records.mkdir(parents=True, exist_ok=True)
        self.tried: dict[str, dict[float, float]] = {}
        """By arm and learning rate the last loss on val, once `all` is done."""
        self._made = self._tries = 0
        self._begun = time.monotonic()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def all(self) -> dict[Wanted, RunRecord]:
        """The runs of all arms, seeds and budgets, at the best of the rates."""
        study = self.study
        self._prepare()
        self._check()
        self.tried = self._try_rates()
        best = {arm: best_rate(arm, losses) for arm, losses in self.tried.items()}
        runs = [
            self._wanted(arm, seed, best.get(arm), flops)
            for seed in study.seeds
            for arm in study.arms
            for flops in study.budgets(arm)
        ]
        runs.sort(key=lambda run: -(run.flops or 0))  # the longest first, so that none is left alone at the end
        return dict(zip(runs, self._side_by_side(self._run, runs), strict=True))

    def compared(self) -> dict[str, dict[float | None, Arm]]:
        """The arms by name and budget, at the budget that all share with what is measured of them."""
        made = self._measured(self.all())
        named = {
            wanted: record.model_copy(update={"name": f"{wanted.arm}_seed{wanted.seed}"})
            for wanted, record in (_one_data(made) if self.study.data_by_seed else made).items()
        }
        at: dict[str, dict[float | None, Arm]] = {arm: {} for arm in self.study.arms}
        for flops in dict.fromkeys(wanted.flops for wanted in named):
            for arm in arms_of([record for wanted, record in named.items() if wanted.flops == flops]):
                name = arm.first.name.rpartition("_seed")[0]  # with one seed the arm's has it, too
                at[name][flops] = Arm(name, arm.runs)
        return {arm: {flops: of[flops] for flops in self.study.budgets(arm)} for arm, of in at.items()}

    def _try_rates(self) -> dict[str, dict[float, float]]:
        """By arm and rate the last loss on val: of the rates listed, and of what `next_rate` adds to them."""
        study = self.study
        losses: dict[str, dict[float, float]] = {arm: {} for arm in study.arms} if study.rates else {}
        asked = [(arm, rate) for arm in losses for rate in study.rates]
        while asked:
            tries = [self._wanted(arm, study.tuning_seed, rate, study.tuning_budget) for arm, rate in asked]
            self._tries += len(tries)
            for (arm, rate), loss in zip(asked, self._side_by_side(self._tried, tries), strict=True):
                losses[arm][rate] = loss
            asked = [(arm, beyond) for arm, of in losses.items() if (beyond := next_rate(of)) is not None]
        return losses

    def stop(self) -> None:
        """End what runs; the runs keep what they have, and resume."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()

    def _wanted(self, arm: str, seed: int, rate: float | None, flops: float | None) -> Wanted:
        name = arm if flops is None else f"{arm}_{flops:g}flops"
        name = f"{name}_seed{seed}" if rate is None else f"{name}_lr{rate:g}_seed{seed}"
        return Wanted(arm, seed, rate, flops, name)

    def _side_by_side(self, make: Callable[[Wanted], T], runs: Sequence[Wanted]) -> list[T]:
        """What `make` gives of each; after the first error nothing is begun any more."""
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = [pool.submit(make, run) for run in runs]
            try:
                return [of.result() for of in waiting]
            except BaseException:
                self.stop()
                for of in waiting:
                    of.cancel()
                raise

    def _prepare(self) -> None:
        seeds = dict.fromkeys([self.study.tuning_seed] if self.study.rates else [])
        for command in dict.fromkeys(
            command for seed in (*seeds, *self.study.seeds) for command in self.study.preparations(seed)
        ):
            done = subprocess.run(
                [sys.executable, "-m", "data_prep", *command.split()], cwd=ROOT, capture_output=True, text=True
            )
            if done.returncode:
                raise UserError(f"prepare: data_prep {command} ended with {done.returncode}:\n{done.stderr.strip()}")

    def _check(self) -> None:
        """Raises `ConfigError` for the first arm that cannot be trained as long as it is to be, before any is."""
        for arm in self.study.arms:
            for flops in {self.study.tuning_budget, *self.study.budgets(arm)}:
                try:
                    with_steps(self.study.config(arm, self.study.seeds[0], None, self.work / arm), flops)
                except ConfigError as error:
                    first, *more = str(error).splitlines()
                    raise_problems([f"arms.{arm}: {line.strip()}" for line in more or [first]])

    def _tried(self, wanted: Wanted) -> float:
        """The last loss on val; infinite if the rate was so large that the loss is no number."""
        try:
            return _validated(self._run(wanted))
        except Diverged as error:
            self.say(f"{wanted.name}: {error}")
            return math.inf

    def _run(self, wanted: Wanted) -> RunRecord:
        kept = self.records / f"{wanted.name}.json"
        config = self.study.config(wanted.arm, wanted.seed, wanted.rate, self.work / wanted.name)
        config = with_steps(config, wanted.flops)
        if kept.exists():
            return _of_study(RunRecord.read(kept), config, kept)
        self._train(wanted.name, config)
        record = RunRecord.read(config.run_dir)
        record.write(kept)
        with self._lock:
            self._made += 1
            self.say(f"{wanted.name}: test loss {record.test_loss:.4f}; {self._left()}")
        return record

    def _train(self, name: str, config: RunConfig) -> None:
        with os_errors_named(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        file, log = self.work / f"{name}.yaml", self.work / f"{name}.log"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        binaries = Path(sys.executable).parent
        launcher = [str(binaries / "deepspeed"), "--num_gpus", str(self.ranks)] if self.ranks > 1 else [sys.executable]
        environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
        if self.jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // (self.jobs * self.ranks))
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        with log.open("a") as output:
            with self._lock:
                if self._ended:
                    raise UserError("the study was stopped; the same command goes on")
                process = subprocess.Popen(
                    [*launcher, str(ROOT / "launch" / "train.py"), "--config", str(file)],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise UserError(f"{name}: training ended with exit code {code}, see {log}:\n{last}")

    def _left(self) -> str:
        study, known = self.study, len(list(self.records.glob("*.json")))
        whole = len(study.seeds) * sum(len(study.budgets(arm)) for arm in study.arms)
        again = study.tuning_seed in study.seeds and study.tuning_budget in study.budgets(next(iter(study.arms)))
        whole += self._tries - (len(study.arms) if self._tries and again else 0)
        seconds = (time.monotonic() - self._begun) / self._made * max(0, whole - known)
        return f"{min(known, whole)} of {whole} runs, about {seconds / 60:.0f} min left"

    def _measured(self, made: Mapping[Wanted, RunRecord]) -> dict[Wanted, RunRecord]:
        """Each arm's first run at the shared budget with its times and phases, if it is on this machine, in one go."""
        firsts = {
            wanted.name: wanted
            for wanted, record in made.items()
            if (wanted.seed, wanted.flops) == (self.study.seeds[0], self.study.shared_budget)
            and record.prefill_ms is None
            and (self.work / wanted.name / "config.yaml").exists()
        }
        found = dict(made)
        records, folders = {name: made[of] for name, of in firsts.items()}, {name: self.work / name for name in firsts}
        for name, record in measured(records, folders).items():
            record.write(self.records / f"{name}.json")
            found[firsts[name]] = record
        return found


def _one_data(made: Mapping[Wanted, RunRecord]) -> dict[Wanted, RunRecord]:
    """Records of runs whose data go by their seed, as of one data: all the seeds' together.

    Raises `UserError` if two arms did not have the same data for a seed.
    """
    by_seed: dict[int, str] = {}
    for wanted, record in made.items():
        if by_seed.setdefault(wanted.seed, record.scored.data) != record.scored.data:
            raise UserError(f"{wanted.name}: other data than other arms' with seed {wanted.seed}; make it anew")
    together = sha256(" ".join(by_seed.values()).encode()).hexdigest()
    return {wanted: record.of_data(together) for wanted, record in made.items()}


def _validated(record: RunRecord) -> float:
    """The last loss on val."""
    if not record.validation:
        raise UserError(f"{record.name}: never evaluated on val, so no rate can be chosen; give train.eval_every")
    return record.validation[-1].loss


def _of_study(record: RunRecord, config: RunConfig, kept: Path) -> RunRecord:
    """The record, if it is of this configuration; raises `UserError` with what differs."""
    then, now = record.arm, arm_of(config, record.scored.data)
    # Filled in when a run begins, by its data and its machine.
    now["model"]["vocab_size"] = then["model"]["vocab_size"]
    apart = differences({key: then[key] for key in now}, now, "")
    if apart:
        raise UserError(f"{kept}: of another study ({'; '.join(apart)}); take another --out, or remove it")
    return record
