"""A study file: arms × seeds, at one budget or several, each with the best of some learning rates.

    base: launch/recipes/demo_gpt2.yaml         a recipe; what follows changes it
    set: {train: {steps: 400, eval_every: 50}}
    prepare: [tokenize --source text/ --out data/mine]   optional: arguments of `python -m data_prep`, run first
    seeds: [1, 2, 3]
    rates: [2.0e-3, 4.0e-3]                     optional: tried with the seed `tuned_on`; the best on val serves all;
                                                while it is at an end, more are tried beyond
    tuned_on: 0                                 optional: by default the first of the seeds
    tuned_at: 1.0e+13                           optional: by default the largest budget that all arms have
    flops: [1.0e+13, 2.0e+13]                   optional: training FLOPs of each run, in place of train.steps
    further: {gpt2: [4.0e+13]}                  optional: budgets that some arms have besides
    arms:
      gpt2: {}
      windowed: {model: {positions: rotary, window: 64}}
      grown: {model: {name: progressive, n_layer: 3}, growth: {preset: no_diverge}}

An arm that names another model has those of the base's keys that this model knows.
`{seed}` in data.path and in `prepare` is the seed of a run: then each seed has data of its own, the same for all arms.
With `flops` an arm that grows gets the steps for which all its stages together spend them, so its policy must be one
that knows beforehand when it grows.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat

from dsllm.config import ModelConfig, RunConfig
from dsllm.errors import ConfigError
from dsllm.growth.forecast import steps_for
from dsllm.growth.plan import as_growable
from dsllm.models import skeleton
from dsllm.registry import MODELS
from dsllm.section import Section, raise_problems, validate
from dsllm.training.sources import resolve_vocabulary
from dsllm.yaml_file import read_yaml

SEED = "{seed}"


class Study(Section):
    """What a study file says."""

    base: Path
    """A recipe."""
    set: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Sections and keys that differ from it in all arms."""
    prepare: list[str] = Field(default_factory=list)
    """Arguments of `python -m data_prep`, one command after the other, before the first run."""
    seeds: list[NonNegativeInt] = Field(default=[1, 2, 3], min_length=1)
    """Of each arm."""
    rates: list[PositiveFloat] = Field(default_factory=list)
    """Learning rates to try first (see rates.py); none: train.lr."""
    tuned_on: NonNegativeInt | None = None
    """The seed that tries them; None: the first."""
    tuned_at: PositiveFloat | None = None
    """The budget at which they are tried; None: the largest that all arms have."""
    flops: PositiveFloat | list[PositiveFloat] | None = None
    """Training FLOPs of each run, or several budgets; None: train.steps."""
    further: dict[str, list[PositiveFloat]] = Field(default_factory=dict)
    """By arm: budgets that it has besides, as a baseline whose losses others are looked up in."""
    arms: dict[str, dict[str, dict[str, Any]]] = Field(min_length=1)
    """By name: sections and keys that differ in this arm."""

    def budgets(self, arm: str) -> list[float | None]:
        """Of an arm, rising; [None] where steps say how long a run is."""
        return [*sorted({*self._flops, *self.further.get(arm, [])})] or [None]

    @property
    def shared_budget(self) -> float | None:
        """The largest that all arms have."""
        return max(self._flops, default=None)

    @property
    def _flops(self) -> list[float]:
        return self.flops if isinstance(self.flops, list) else [] if self.flops is None else [self.flops]

    @property
    def tuning_budget(self) -> float | None:
        return self.tuned_at or self.shared_budget

    @property
    def tuning_seed(self) -> int:
        return self.seeds[0] if self.tuned_on is None else self.tuned_on

    @property
    def data_by_seed(self) -> bool:
        """Whether each seed has its own data."""
        return any(SEED in str(self._values(arm).get("data")) for arm in self.arms)

    @classmethod
    def read(cls, path: Path) -> "Study":
        """Raises `ConfigError` with everything that is wrong with the file, the configurations of its arms included."""
        study, problems = validate(cls, read_yaml(path, "launch/studies/"), "")
        raise_problems([f"{path}: {problem}" for problem in problems])
        assert study is not None
        for key in ("seeds", "rates"):
            values = getattr(study, key)
            twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
            problems += [f"{key}: {value:g} twice; take one out" for value in twice]
        try:
            read_yaml(study.base)
        except ConfigError as error:
            raise ConfigError(f"{path}: base: {error}") from None
        if study.flops == []:
            problems.append("flops: no budget; name one, or leave the key out")
        for arm in study.further if study.flops is not None else ():
            if arm not in study.arms:
                problems.append(f"further.{arm}: no such arm; the arms are {', '.join(study.arms)}")
        if study.further and study.flops is None:
            problems.append("further: budgets besides none; give flops, which all arms have")
        if study.tuned_at is not None and study.flops is None:
            problems.append("tuned_at: a budget, but the runs have none; give flops, or leave it out")
        configs: dict[str, RunConfig] = {}
        for arm in study.arms:
            if not arm.replace("-", "").replace("_", "").replace(".", "").isalnum():
                problems.append(f"arms.{arm}: a name of letters, digits, '-', '_' and '.' is needed")
            try:
                configs[arm] = study.config(arm, study.seeds[0], None, Path("runs/study"))
            except ConfigError as error:
                first, *more = str(error).splitlines()
                problems += [f"arms.{arm}: {line.strip()}" for line in more or [first]]
        for (one, config), (other, same) in combinations(configs.items(), 2):
            if config == same:
                problems.append(f"arms.{other}: the same as {one}; remove one of them")
        raise_problems([f"{path}: {problem}" for problem in problems])
        return study

    def config(self, arm: str, seed: int, rate: float | None, run_dir: Path) -> RunConfig:
        """The whole configuration of a run, but for the steps that a budget gives it."""
        values = self._values(arm)
        chosen = {"seed": seed, **({} if rate is None else {"lr": rate})}
        train = {**(values.get("train") or {}), **chosen}
        data = _with_seed(values.get("data"), seed)
        return RunConfig.from_values({**values, "train": train, "data": data, "run_dir": str(run_dir)})

    def preparations(self, seed: int) -> list[str]:
        """The arguments of `python -m data_prep` that make a seed's data."""
        return [command.replace(SEED, str(seed)) for command in self.prepare]

    def _values(self, arm: str) -> dict[str, Any]:
        values = read_yaml(self.base)
        base_model = _model_name(values)
        for changes in (self.set, self.arms[arm]):
            for section, keys in changes.items():
                values[section] = {**(values.get(section) or {}), **keys}
        model = _model_name(values)
        if model != base_model and model in MODELS.names():
            own = {"name", *MODELS[model].Config.model_fields, *self.arms[arm].get("model", {})}
            values["model"] = {key: value for key, value in values["model"].items() if key in own}
        return values


def _model_name(values: Mapping[str, Any]) -> str:
    model = values.get("model")
    return str(model.get("name", ModelConfig().name)) if isinstance(model, dict) else ModelConfig().name


def with_steps(config: RunConfig, flops: float | None) -> RunConfig:
    """The configuration with as many steps as the FLOPs are good for; as it is without any.

    Raises `ConfigError` if that is less than one, or if it grows by a policy that decides in the run.
    """
    if flops is None:
        return config
    resolved, _ = resolve_vocabulary(config)
    model, tokens_per_step = resolved.model, config.train.global_batch_size * resolved.model.context
    if config.growth is not None:
        steps = steps_for(as_growable(model), config.growth, tokens_per_step, flops)
    else:
        steps = round(flops / (skeleton(model).flops_per_token(model.context) * tokens_per_step))
    if steps < 1:
        raise ConfigError(f"flops = {flops:g}: not one step of {config.run_dir}; take more")
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def _with_seed(data: Any, seed: int) -> Any:
    """The data section, for one seed."""
    if not isinstance(data, dict) or "path" not in data:
        return data
    path = data["path"]
    named = [str(each).replace(SEED, str(seed)) for each in path] if isinstance(path, list) else None
    return {**data, "path": named or str(path).replace(SEED, str(seed))}
