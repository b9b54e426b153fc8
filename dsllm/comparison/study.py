"""A study: arms × seeds, one run after the other through the ordinary launcher, then compared.

    base: launch/recipes/demo_gpt2.yaml        a recipe; what follows changes it
    set: {train: {steps: 400, eval_every: 50}}
    seeds: [1, 2, 3]
    rates: [2.0e-3, 4.0e-3]                     optional: the first seed tries them, the best on val serves all seeds
    flops: 1.0e+13                              optional: training FLOPs of each run, in place of train.steps
    arms:
      gpt2: {}
      windowed: {model: {positions: rotary, window: 64}}

A finished run leaves a record of some kilobytes in OUT/records. A run that has one is not made again, so the same
command goes on, on another machine too if OUT is there; a run that was broken off is resumed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat

from dsllm.comparison.record import RunRecord, arm_of
from dsllm.config import RunConfig, read_yaml
from dsllm.data.files import os_errors_named
from dsllm.errors import ConfigError, UserError
from dsllm.models import skeleton
from dsllm.section import Section, raise_problems, validate
from dsllm.training.run_folder import differences
from dsllm.training.sources import resolve_vocabulary

ROOT = Path(__file__).resolve().parents[2]


class Study(Section):
    """What a study file says."""

    base: Path
    """A recipe."""
    set: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Sections and keys that differ from it in all arms."""
    seeds: list[NonNegativeInt] = Field(default=[1, 2, 3], min_length=1)
    """Of each arm; the first one tries the learning rates."""
    rates: list[PositiveFloat] = Field(default_factory=list)
    """Learning rates to try; none: train.lr."""
    flops: PositiveFloat | None = None
    """Training FLOPs of each run; None: train.steps. Not for arms that grow."""
    arms: dict[str, dict[str, dict[str, Any]]] = Field(min_length=1)
    """By name: sections and keys that differ in this arm."""

    @classmethod
    def read(cls, path: Path) -> "Study":
        """Raises `ConfigError` with everything that is wrong with the file, the configurations of its arms included."""
        study, problems = validate(cls, read_yaml(path), "")
        raise_problems([f"{path}: {problem}" for problem in problems])
        assert study is not None
        for arm in study.arms:
            if not arm.replace("-", "").replace("_", "").replace(".", "").isalnum():
                problems.append(f"arms.{arm}: a name of letters, digits, '-', '_' and '.' is needed")
            try:
                config = study.config(arm, study.seeds[0], None, Path("runs/study"))
                if study.flops is not None and config.growth is not None:
                    problems.append(f"arms.{arm}: grows, so flops does not say its steps; give train.steps instead")
            except ConfigError as error:
                problems += [f"arms.{arm}: {line.strip()}" for line in str(error).splitlines()[1:]]
        raise_problems([f"{path}: {problem}" for problem in problems])
        return study

    def config(self, arm: str, seed: int, rate: float | None, run_dir: Path) -> RunConfig:
        """The whole configuration of a run."""
        values = read_yaml(self.base)
        chosen = {"train": {"seed": seed, **({} if rate is None else {"lr": rate})}}
        for changes in (self.set, self.arms[arm], chosen):
            for section, keys in changes.items():
                values[section] = {**(values.get(section) or {}), **keys}
        return RunConfig.from_values({**values, "run_dir": str(run_dir)})

    def with_steps(self, config: RunConfig) -> RunConfig:
        """The configuration with as many steps as the FLOPs are good for."""
        if self.flops is None:
            return config
        resolved, _ = resolve_vocabulary(config)
        each = skeleton(resolved.model).flops_per_token(resolved.model.context)
        steps = round(self.flops / (each * config.train.global_batch_size * resolved.model.context))
        if steps < 1:
            raise ConfigError(f"flops = {self.flops:g}: not one step of {config.run_dir}; take more")
        return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


class Runner:
    """Makes the runs of a study, as far as they are not made yet."""

    def __init__(self, study: Study, work: Path, out: Path, ranks: int, say: Callable[[str], None] = print):
        self.study, self.work, self.records, self.ranks, self.say = study, work, out / "records", ranks, say
        with os_errors_named(self.records):
            self.records.mkdir(parents=True, exist_ok=True)
        self._made = 0
        self._begun = time.monotonic()

    def all(self) -> dict[str, list[RunRecord]]:
        """By arm, the runs of all seeds, at the best of the rates."""
        arms = self.study.arms
        tried = {arm: [self._run(arm, self.study.seeds[0], rate) for rate in self.study.rates] for arm in arms}
        best = {arm: min(runs, key=_validated).arm["train"]["lr"] if runs else None for arm, runs in tried.items()}
        return {arm: [self._run(arm, seed, best[arm]) for seed in self.study.seeds] for arm in arms}

    def _run(self, arm: str, seed: int, rate: float | None) -> RunRecord:
        name = f"{arm}_seed{seed}" if rate is None else f"{arm}_lr{rate:g}_seed{seed}"
        kept = self.records / f"{name}.json"
        config = self.study.with_steps(self.study.config(arm, seed, rate, self.work / name))
        if kept.exists():
            return _of_study(RunRecord.read(kept), config, kept)
        self._train(name, config)
        record = RunRecord.read(config.run_dir)
        record.write(kept)
        self._made += 1
        self.say(f"{name}: test loss {record.test_loss:.4f}; {self._left()}")
        return record

    def _train(self, name: str, config: RunConfig) -> None:
        with os_errors_named(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        file, log = self.work / f"{name}.yaml", self.work / f"{name}.log"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        binaries = Path(sys.executable).parent
        launcher = [str(binaries / "deepspeed"), "--num_gpus", str(self.ranks)] if self.ranks > 1 else [sys.executable]
        path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
        with log.open("a") as output:
            done = subprocess.run(
                [*launcher, str(ROOT / "launch" / "train.py"), "--config", str(file)],
                env={**os.environ, "PATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise UserError(f"{name}: training ended with exit code {done.returncode}, see {log}:\n{last}")

    def _left(self) -> str:
        study, known = self.study, len(list(self.records.glob("*.json")))
        whole = len(study.arms) * (len(study.seeds) + max(0, len(study.rates) - 1))
        seconds = (time.monotonic() - self._begun) / self._made * max(0, whole - known)
        return f"{min(known, whole)} of {whole} runs, about {seconds / 60:.0f} min left"


def _of_study(record: RunRecord, config: RunConfig, kept: Path) -> RunRecord:
    """The record, if it is of this configuration; raises `UserError` with what differs."""
    then, now = record.arm, arm_of(config, record.scored.data)
    # Filled in when a run begins, by its data and its machine.
    now["model"]["vocab_size"] = then["model"]["vocab_size"]
    apart = differences({key: then[key] for key in now}, now, "")
    if apart:
        raise UserError(f"{kept}: of another study ({'; '.join(apart)}); take another --out, or remove it")
    return record


def _validated(record: RunRecord) -> float:
    """The last loss on val, by which a rate is chosen; the test split is not looked at for that."""
    if not record.validation:
        raise UserError(f"{record.name}: never evaluated on val, so no rate can be chosen; give train.eval_every")
    return record.validation[-1].loss


def named(arms: Mapping[str, Sequence[RunRecord]]) -> Iterator[RunRecord]:
    """The records under their arms' names, so that a report calls them by these."""
    for arm, records in arms.items():
        for record in records:
            yield record.model_copy(update={"name": f"{arm}_seed{record.seed}"})
