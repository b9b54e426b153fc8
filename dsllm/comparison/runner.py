"""The runs of a study, made through the ordinary launcher, several side by side if there is room.

A finished run leaves a record of some kilobytes in OUT/records, one that diverged a line that says so. A run that has
either is not made again, so the same command goes on, on another machine too if OUT is there; a run that was broken off
is resumed.
"""

import json
import math
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from dsllm.comparison.arms import Arm, arms_of, of_one_data
from dsllm.comparison.jobs import ROOT, Jobs, apart
from dsllm.comparison.measuring import measured
from dsllm.comparison.rates import best_rate, next_rate
from dsllm.comparison.record import Diverged, RunRecord, arm_of, completed
from dsllm.comparison.study import Study, with_steps
from dsllm.config import RunConfig
from dsllm.data.files import os_errors_named, write_atomically
from dsllm.errors import ConfigError, UserError
from dsllm.section import raise_problems


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
        self.study, self.work, self.records, self.say = study, work, out / "records", say
        self.jobs = Jobs(work, ranks, jobs)
        with os_errors_named(self.records):
            self.records.mkdir(parents=True, exist_ok=True)
        self.tried: dict[str, dict[float, float]] = {}
        """By arm and learning rate the last loss on val, once `all` is done."""
        self.diverged: list[Wanted] = []
        """Runs at the best rate that have no loss, once `all` is done."""
        self._due: dict[Wanted, None] = {}
        """All runs of the study as far as they are known, tries included."""
        self._spent = 0.0
        """`_cost` of the runs that were made since `_begun`."""
        self._begun = time.monotonic()
        self._lock = threading.Lock()

    def all(self) -> dict[Wanted, RunRecord]:
        """The runs of all arms, seeds and budgets, at the best of the rates, but for those that diverged."""
        self._prepare()
        self._check()
        unrated = self._runs({})  # stand for those of which it is open at which rate
        tries = (self.study.tuning_seed, self.study.tuning_budget) if self.study.rates else None
        self._due.update(dict.fromkeys(run for run in unrated if (run.seed, run.flops) != tries))
        self._begun = time.monotonic()
        self.tried = self._try_rates()
        runs = self._runs({arm: best_rate(arm, losses) for arm, losses in self.tried.items()})
        self._due = dict.fromkeys([*(wanted for wanted in self._due if wanted not in unrated), *runs])
        runs.sort(key=lambda run: -(run.flops or 0))  # the longest first, so that none is left alone at the end
        made = dict(zip(runs, self.jobs.side_by_side(self._run_if_it_can, runs), strict=True))
        self.diverged = [wanted for wanted, record in made.items() if record is None]
        return {wanted: record for wanted, record in made.items() if record is not None}

    def compared(self) -> dict[str, dict[float | None, Arm]]:
        """The arms by name and budget, at the budget that all share with what is measured of them.

        An arm has no such budget if it diverged there with every seed. Raises `UserError` if all did.
        """
        made = self._measured(self.all())
        if not any(wanted.flops == self.study.shared_budget for wanted in made):
            raise UserError("every run diverged; try lower learning rates")
        records = of_one_data(list(made.values())) if self.study.data_by_seed else made.values()
        named = {
            wanted: record.model_copy(update={"name": f"{wanted.arm}_seed{wanted.seed}"})
            for wanted, record in zip(made, records, strict=True)
        }
        at: dict[str, dict[float | None, Arm]] = {arm: {} for arm in self.study.arms}
        for flops in dict.fromkeys(wanted.flops for wanted in named):
            for arm in arms_of([record for wanted, record in named.items() if wanted.flops == flops]):
                name = arm.first.name.rpartition("_seed")[0]  # with one seed the arm's has it, too
                at[name][flops] = Arm(name, arm.runs)
        return {arm: {flops: of[flops] for flops in sorted(of, key=lambda flops: flops or 0)} for arm, of in at.items()}

    def _try_rates(self) -> dict[str, dict[float, float]]:
        """By arm and rate the last loss on val: of the rates listed, and of what `next_rate` adds to them."""
        study = self.study
        losses: dict[str, dict[float, float]] = {arm: {} for arm in study.arms} if study.rates else {}
        asked = [(arm, rate) for arm in losses for rate in study.rates]
        while asked:
            tries = [self._wanted(arm, study.tuning_seed, rate, study.tuning_budget) for arm, rate in asked]
            self._due.update(dict.fromkeys(tries))
            for (arm, rate), loss in zip(asked, self.jobs.side_by_side(self._tried, tries), strict=True):
                losses[arm][rate] = loss
            asked = [(arm, beyond) for arm, of in losses.items() if (beyond := next_rate(of)) is not None]
        return losses

    def _runs(self, rates: Mapping[str, float]) -> list[Wanted]:
        """All that are compared, with the rates of their arms as far as these are known."""
        study = self.study
        return [
            self._wanted(arm, seed, rates.get(arm), flops)
            for seed in study.seeds
            for arm in study.arms
            for flops in study.budgets(arm)
        ]

    def _wanted(self, arm: str, seed: int, rate: float | None, flops: float | None) -> Wanted:
        name = arm if flops is None else f"{arm}_{flops:g}flops"
        name = f"{name}_seed{seed}" if rate is None else f"{name}_lr{rate:g}_seed{seed}"
        return Wanted(arm, seed, rate, flops, name)

    def _prepare(self) -> None:
        seeds = dict.fromkeys([self.study.tuning_seed] if self.study.rates else [])
        for command in dict.fromkeys(
            command for seed in (*seeds, *self.study.seeds) for command in self.study.preparations(seed)
        ):
            self.say(f"data_prep {command}")
            done = subprocess.run(
                [sys.executable, "-m", "data_prep", *shlex.split(command)], cwd=ROOT, capture_output=True, text=True
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
        record = self._run_if_it_can(wanted)
        if record is None:
            return math.inf
        if record.validation_loss is None:
            raise UserError(f"{record.name}: never evaluated on val, so no rate can be chosen; give train.eval_every")
        return record.validation_loss

    def _run_if_it_can(self, wanted: Wanted) -> RunRecord | None:
        """As `_run`; None if it diverged."""
        try:
            return self._run(wanted)
        except Diverged as error:
            self.say(f"{wanted.name}: {error}")
            return None

    def _run(self, wanted: Wanted) -> RunRecord:
        kept, failed = self.records / f"{wanted.name}.json", self.records / f"{wanted.name}.diverged"
        config = self.study.config(wanted.arm, wanted.seed, wanted.rate, self.work / wanted.name)
        config = with_steps(config, wanted.flops)
        if failed.exists():
            _check_kept(failed, completed(json.loads(failed.read_text())), config, self.jobs.ranks)
            raise Diverged("diverged")
        if kept.exists():
            record = RunRecord.read(kept)
            _check_kept(kept, record.arm, config, self.jobs.ranks)
            return record
        try:
            self.jobs.train(wanted.name, config)
            record = RunRecord.read(config.run_dir)
        except Diverged:
            with self._lock:
                self._spent += _cost(wanted)
            said = arm_of(config, "any") | {"ranks": self.jobs.ranks, "precision": config.train.precision}
            write_atomically(failed, (json.dumps(said) + "\n").encode())
            raise
        self._made(wanted, record)
        return record

    def _made(self, wanted: Wanted, record: RunRecord) -> None:
        """Keep the record, and tell how far the study is."""
        record.write(self.records / f"{wanted.name}.json")
        with self._lock:
            self._spent += _cost(wanted)
            self.say(f"{wanted.name}: test loss {record.test_loss:.4f}; {self._left()}")

    def _left(self) -> str:
        left = [wanted for wanted in self._due if not self._is_there(wanted)]
        seconds = (time.monotonic() - self._begun) / self._spent * sum(map(_cost, left))
        return f"{len(self._due) - len(left)} of {len(self._due)} runs, about {seconds / 60:.0f} min left"

    def _is_there(self, wanted: Wanted) -> bool:
        """Whether it has been made, at whatever rate while that is open."""
        name = escape(wanted.name)
        if self.study.rates and wanted.rate is None:
            stem, _, seed = name.rpartition("_seed")
            name = f"{stem}_lr*_seed{seed}"
        return any(any(self.records.glob(f"{name}.{end}")) for end in ("json", "diverged"))

    def _measured(self, made: Mapping[Wanted, RunRecord]) -> dict[Wanted, RunRecord]:
        """Each arm's first run at the shared budget with its times and phases, if it is on this machine, in one go."""
        firsts = {
            wanted.name: wanted
            for wanted, record in made.items()
            if (wanted.seed, wanted.flops) == (self.study.seeds[0], self.study.shared_budget)
        }
        if all(made[wanted].prefill_ms is not None for wanted in firsts.values()):
            return dict(made)
        found, there = dict(made), {name for name in firsts if (self.work / name / "config.yaml").exists()}
        records, folders = {name: made[firsts[name]] for name in there}, {name: self.work / name for name in there}
        for name, record in measured(records, folders).items():
            record.write(self.records / f"{name}.json")
            found[firsts[name]] = record
        return found


def _cost(wanted: Wanted) -> float:
    """What the time of a run is taken to be in proportion to: its FLOPs, or the same for all if none are given."""
    return wanted.flops or 1.0


def _check_kept(kept: Path, then: dict[str, Any], config: RunConfig, ranks: int) -> None:
    """Raises `UserError` with what differs, if a record is not of this configuration."""
    precision = then["precision"] if config.train.precision == "auto" else config.train.precision
    now = arm_of(config, then["data"]["path"]) | {"ranks": ranks, "precision": precision}
    differing = apart(then, now)
    if differing:
        raise UserError(f"{kept}: of another study ({differing}); take another --out and --work, or remove it")
