"""The configuration of a run: one typed section per concern, a sentence per field.

A run's configuration is a YAML file and overrides; what comes out is frozen and complete, and `as_yaml` says it
so that it reads back as the same. Every problem is reported at once, as one `ConfigError`:

    configuration: 2 problems
      model.n_layers: no such key; did you mean model.n_layer?
      train.global_batch_size = 20: not a multiple of train.micro_batch_size = 8; take 16 or 24
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny, field_validator

from dsllm.errors import LONGEST_VALUE, ConfigError, shortened, shown
from dsllm.registry import MODELS, OPERATORS, POLICIES
from dsllm.section import Section, raise_problems, section_within, unknown_key, validate
from dsllm.yaml_file import parse_yaml, read_yaml

Fraction = Field(ge=0, le=1)
NAMED = {"growth.operator": "interpose", "growth.policy": "schedule"}
"""A plain word there is short for a mapping that has it as `name`; and what it is if it is left out."""


class ModelConfig(Section):
    """What every model has; a model's own fields stand in the subclass beside it."""

    name: str = "gpt2"
    """The model, by its registered name."""
    n_layer: int = Field(default=12, ge=1, le=10_000)
    """Layers that are executed for each token."""
    n_head: PositiveInt = 6
    """Attention heads; n_embd must divide by it."""
    n_embd: int = Field(default=192, ge=1, le=2**17)
    """Width of the residual stream."""
    context: PositiveInt = 256
    """Tokens that the model sees at once; a training sample has one more."""
    vocab_size: int | None = Field(default=None, ge=1, le=2**24)
    """Rows of the embedding; by default the tokenizer's size, rounded up to a multiple of 64."""

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Attention layers that are executed, and their width: of each level, if vectors are of several kinds."""
        return ((self.n_layer, self.n_embd),)

    @property
    def any_length(self) -> bool:
        """Whether a model of the same tensors reads sequences longer than `context`, too."""
        return False

    def remarks(self) -> Iterator[str]:
        """What is allowed, but hardly meant: said when a run begins."""
        return iter(())


class LoRAConfig(Section):
    """Low-rank adapters on frozen matrices: W + scale · B A (LoRA, 2106.09685)."""

    rank: PositiveInt = 32
    """Rank of each adapter; pre-training wants an eighth to a quarter of n_embd."""
    alpha: PositiveFloat = 16.0
    """Size of an adapter's output, before the scaling by its rank."""
    scaling: Literal["rank_stabilised", "standard"] = "rank_stabilised"
    """scale = alpha / √rank (2312.03732), or alpha / rank as in the first paper."""
    freeze: Literal["matrices", "attention", "all"] = "matrices"
    """What rests: the blocks' linear maps, those of attention only (MLPs then train whole), or all but the adapters."""
    lr_scale_a: PositiveFloat = 1.0
    """Learning rate of A, as a multiple of the run's."""
    lr_scale_b: PositiveFloat = 4.0
    """Learning rate of B, as a multiple of the run's (LoRA+, 2402.12354; its 16 is for rates of fine-tuning)."""

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / (self.rank**0.5 if self.scaling == "rank_stabilised" else self.rank)


class CurriculumConfig(Section):
    """Of problems: their chains lengthen with the training FLOPs spent, in a straight line."""

    start: PositiveInt = 2
    """At first."""
    end: PositiveInt
    """In the end."""
    flops: PositiveFloat
    """After which `end` is reached."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.end <= self.start:
            yield "end", f"not longer than data.curriculum.start = {self.start}; take more, or leave the curriculum out"


class DataConfig(Section):
    """Where the tokens come from."""

    path: str | list[str]
    """A folder written by `python -m data_prep`, or several to blend."""
    weights: list[PositiveFloat] | None = None
    """With several folders: the share of the samples that each gives, any scale; by default equal shares."""
    mask_documents: bool = False
    """Keep attention within each document of a packed sample."""
    curriculum: CurriculumConfig | None = None
    """Of problems (`python -m data_prep reasoning`): short chains first; null: all in any order."""

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.curriculum is not None and not self.mask_documents:
            yield "mask_documents", "a curriculum puts several problems into a sample, to be kept apart; take true"
        if not self.paths or not all(self.paths):
            yield "path", "name a folder written by `python -m data_prep tokenize`"
        if self.weights is not None and len(self.weights) != len(self.paths):
            yield (
                "weights",
                f"{len(self.weights)} weights for {len(self.paths)} folders in data.path; give each one",
            )


class TrainConfig(Section):
    """The optimizer, its schedule, and when to evaluate and save. Batch sizes count sequences."""

    steps: PositiveInt = 1000
    """Optimizer steps of the whole run."""
    micro_batch_size: PositiveInt = 8
    """Sequences per rank in one forward pass."""
    global_batch_size: PositiveInt = 64
    """Sequences per optimizer step over all ranks; accumulation follows from it and must come out whole."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: cosine decay to the end, or stable and then a linear decay (warm-up–stable–decay)."""
    warmup_tokens: NonNegativeInt | None = None
    """Tokens over which the rate rises from 0 to its peak; by default a fiftieth of the run's."""
    decay_tokens: NonNegativeInt | None = None
    """wsd only: tokens of the decay at the run's end; by default `decay_share` of the run's."""
    decay_share: float = Field(default=0.2, ge=0, le=1)
    """wsd only: share of the run's tokens over which the rate decays; not looked at where `decay_tokens` is given."""
    final_lr: float = Field(default=0.1, ge=0, le=1)
    """The last learning rate, as a fraction of the peak."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW: decay of the mean of gradients."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW: decay of the mean of squared gradients."""
    eps: PositiveFloat = 1e-8
    """AdamW: added to the denominator."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW: decoupled decay of matrices; vectors (norms, biases) have none."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; larger ones are scaled down before the step. 0: no clipping."""
    spike_sigma: float = Field(default=6.0, ge=0)
    """An update is skipped if loss or gradient norm is so many standard deviations above the mean of the last
    `spike_window` steps. 0: only if one of them is no number."""
    spike_window: int = Field(default=128, ge=2, le=2**16)
    """Steps that loss and gradient norm are compared with; spikes are looked for once half of them are there."""
    max_skips: PositiveInt = 10
    """Skipped updates in a row at which the run ends, with the numbers of the samples that it had read."""
    seed: int = Field(default=1337, ge=0, lt=2**63)
    """Of the initial weights and of the order of samples."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware multiplies it faster, else fp32; a CPU is timed at the start of the run."""
    ds_config: Path = Path("ds_configs/zero2.json")
    """DeepSpeed's configuration; batch sizes, precision, clipping and optimizer come from here and are merged in."""
    eval_every: NonNegativeInt = 250
    """Steps between evaluations on the validation split; 0: never."""
    eval_samples: PositiveInt | None = 512
    """Samples of the validation split, evenly spaced, that an evaluation reads; null: all."""
    test_samples: NonNegativeInt | None = None
    """The same for the test split after training; null: all; 0: no test."""
    checkpoint_every: NonNegativeInt = 500
    """Steps between checkpoints; the last step always writes one. 0: only then."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""
    lost_after: float = Field(default=30.0, ge=3)
    """Seconds without a sign of life from another rank, after which every rank ends: its host or network is down."""
    meet_within: float = Field(default=60.0, ge=3)
    """Seconds within which all ranks have to come together, at the start and after each structural event."""
    activation_checkpointing: (
        Literal["none", "all"] | PositiveInt | list[NonNegativeInt] | dict[Literal["levels"], list[NonNegativeInt]]
    ) = "none"
    """Blocks whose activations are recomputed in the backward pass: none, all, every k-th, a list from 0, or of levels:
    {levels: [0, 1]}."""

    compile: bool = False
    """Compile the blocks and the loss by torch.compile: quicker steps, after a first one that takes seconds, up to half
    a minute, longer."""

    def problems(self) -> Iterator[tuple[str, str]]:
        micro = self.micro_batch_size
        if self.global_batch_size % micro:
            below = self.global_batch_size // micro * micro
            cure = f"take {below} or {below + micro}" if below else f"take {micro}"
            yield "global_batch_size", f"not a multiple of train.micro_batch_size = {micro}; {cure}"
        # A lasting rise is the new level once 1 / (1 + sigma²) of the window lies on it.
        rise = int(self.spike_window / (1 + self.spike_sigma**2)) + 1 if self.spike_sigma else 0
        if self.max_skips <= rise:
            yield (
                "max_skips",
                f"a lasting rise of the loss alone skips {rise} updates, by train.spike_window = {self.spike_window} "
                f"and train.spike_sigma = {self.spike_sigma:g}; take at least {rise + 1}",
            )


class GrowthConfig(Section):
    """How and when the model grows; only with a model that can, as `progressive`."""

    preset: Literal["diverge_only", "diverge_consolidate", "no_diverge"] = "diverge_only"
    """A stage's phases: frozen blocks under adapters; the same, and then everything; or everything throughout."""
    operator: str | dict[str, Any] = NAMED["growth.operator"]
    """What the grown model is: an operator by name, or a mapping with `name` and its options."""
    factor: int | list[int] = 2
    """By how much blocks multiply: one number for every growth event, or one for each."""
    policy: str | dict[str, Any] = NAMED["growth.policy"]
    """When it grows: a policy by name, or a mapping with `name` and its options."""
    diverge_share: float = Field(default=0.25, gt=0, lt=1)
    """diverge_consolidate: the part of a stage that its frozen phase takes."""
    lora: LoRAConfig = LoRAConfig()
    """The adapters of the frozen phase."""
    optimizer_state: Literal["copy", "zero", "asymmetric"] = "copy"
    """Adam's moments of copies: their source's; zero, as for all then; or kept by the first copy, zero for others."""
    rewarm_tokens: NonNegativeInt = 0
    """Tokens over which the learning rate rises from zero again after a growth event; 0: it goes on."""
    lr_scale: PositiveFloat = 1.0
    """What each growth event multiplies the learning rate by."""
    probe_samples: PositiveInt = 8
    """Held-out samples on which the model is compared before and after each structural event."""
    watch_every: NonNegativeInt = 50
    """Steps between looks at how far copies have diverged; 0: never."""

    def factors(self, events: int) -> list[int]:
        """The factor of each of `events` growth events; the last of a list counts for all that follow."""
        given = [self.factor] if isinstance(self.factor, int) else self.factor
        return [given[min(event, len(given) - 1)] for event in range(events)]

    def problems(self) -> Iterator[tuple[str, str]]:
        # Here, not above: operators and policies know models, and through them this module.
        from dsllm.growth.parts import resolve

        for key, registry in (("operator", OPERATORS), ("policy", POLICIES)):
            for line in resolve(registry, getattr(self, key), key)[2]:
                place, _, what = line.partition(": ")
                yield place.partition(" = ")[0], what
        if self.factor == [] or min(self.factors(1) or [2]) < 2:
            yield "factor", "nothing grows by it; take 2 or more"


class MonitorConfig(Section):
    """What is written while training."""

    log_every: PositiveInt = 10
    """Steps between training records and progress lines."""
    tensorboard: bool = True
    """Show the same, and pictures and texts, in TensorBoard."""
    wandb: str | None = Field(default=None, min_length=1)
    """A project of Weights & Biases that shows it, too, if wandb is installed; null: none."""
    new_tokens: NonNegativeInt = 32
    """Tokens that the model writes after each of `prompts` when it is evaluated on the validation split; 0: it writes
    nothing."""
    prompts: list[str] | None = None
    """What it continues; null: the beginnings of two validation samples, of problems none."""


class RunConfig(Section):
    """All of a run. `from_file` reads what `as_yaml` says."""

    run_dir: Path
    """The run's folder; the same command on it resumes."""
    init_from: str | None = None
    """hf: and a folder, or a name on the hub: a pre-trained GPT-2 of transformers that the run begins with, by its
    weights, and its sizes where `model` leaves them out. Null: weights by `train.seed`."""
    model: SerializeAsAny[ModelConfig] = ModelConfig()
    """The model; its `name` says which other keys there are."""
    data: DataConfig
    """Where the tokens come from."""
    train: TrainConfig = TrainConfig()
    """The optimizer, its schedule, and when to evaluate and save."""
    growth: GrowthConfig | None = None
    """Left out: the model stays as it is."""
    monitor: MonitorConfig = MonitorConfig()
    """What is written while training."""

    @field_validator("run_dir")
    @classmethod
    def _named(cls, path: Path) -> Path:
        if path == Path():
            raise ValueError("name a folder for the run, as in runs/mine")
        return path

    @classmethod
    def from_file(cls, path: str | Path, overrides: Sequence[str] = ()) -> "RunConfig":
        """Read a YAML file and apply overrides of the form `section.key=value`, the value in YAML.

        Raises `ConfigError` with every problem at once.
        """
        problems: list[str] = []
        values = read_yaml(Path(path))
        for override in overrides:
            key, equals, text = override.partition("=")
            if equals:
                _assign(values, key, text, problems)
            else:
                problems.append(f"{override}: an override is written section.key=value")
        return cls.from_values(values, problems)

    @classmethod
    def from_values(cls, values: dict[str, Any], problems: Sequence[str] = ()) -> "RunConfig":
        """The configuration from nested dictionaries; `problems` found before are reported with those found here."""
        found = list(problems)
        parts: dict[str, Any] = {}
        for key, value in values.items():
            section = cls.section_type(key, values, found)
            if section is not None:
                part, lines = validate(section, value, key)
                found += lines
                if part is not None:
                    parts[key] = part
            elif key in cls.model_fields and key != "model":
                parts[key] = value
            elif key not in cls.model_fields:
                found.append(unknown_key("", str(key), list(cls.model_fields)))
        if "data" not in values:
            found.append("data.path: missing; name a folder written by `python -m data_prep tokenize`")
        raise_problems(found + ([] if "run_dir" in values else ["run_dir: missing; name a folder, as in runs/mine"]))
        config, lines = validate(cls, parts, "")
        raise_problems(lines)
        assert config is not None
        return config

    @classmethod
    def section_type(cls, key: str, values: dict[str, Any], problems: list[str]) -> type[Section] | None:
        """The section behind a top-level key; the model's is the one of the model that `values` names."""
        if key == "model":
            model = values.get("model")
            name = model.get("name", ModelConfig().name) if isinstance(model, dict) else ModelConfig().name
            try:
                found = getattr(MODELS[str(name)], "Config", None)
            except ConfigError as error:
                problems.append(f"model.name = {shortened(str(name), LONGEST_VALUE)}: {str(error).partition(': ')[2]}")
                return None
            if not (isinstance(found, type) and issubclass(found, ModelConfig)):
                problems.append(f"model.name = {name}: is no model; name a subclass of LanguageModel")
                return None
            return found
        return None if values.get(key) is None else section_within(cls, key)

    def as_yaml(self) -> str:
        """The full resolved configuration, readable by `from_file`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _assign(values: dict[str, Any], key: str, text: str, problems: list[str]) -> None:
    """Set the dotted `key` in nested dictionaries to the YAML value `text`."""
    *sections, last = key.split(".")
    for depth, section in enumerate(sections, start=1):
        within = ".".join(sections[:depth])
        if values.get(section) is None:  # left out, or null as `as_yaml` writes it
            values[section] = {"name": NAMED[within]} if within in NAMED else {}
        elif within in NAMED and isinstance(values[section], str):
            values[section] = {"name": values[section]}
        values = values[section]
        if not isinstance(values, dict):
            problems.append(f"{key}: {within} is no section of keys here, but {shown(values)}")
            return
    try:
        values[last] = parse_yaml(text)
    except yaml.YAMLError:
        problems.append(f"{key} = {text}: not a YAML value; quote it")
