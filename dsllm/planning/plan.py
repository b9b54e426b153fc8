"""A run before it begins: what each rank holds, what the hosts send each other, how long it takes and what it costs.

Memory is counted (`memory`, `activations`) and held against measured runs by a test. Time rests on assumptions, and the
plan says them: the share of the data sheet's peak that products reach, and a network that does nothing else.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsllm.config import ModelConfig, RunConfig
from dsllm.errors import ConfigError
from dsllm.growth.forecast import models_by_steps
from dsllm.growth.plan import as_growable
from dsllm.models import skeleton
from dsllm.models.language_model import LanguageModel
from dsllm.planning.accelerators import Accelerator
from dsllm.planning.activations import count_activations
from dsllm.planning.memory import Machine, Memory, Sizes, by_weights, memory_of
from dsllm.training.beginning import with_sizes
from dsllm.training.ds_config import read_ds_config
from dsllm.training.sources import resolve_vocabulary

GIB = 2**30
RESERVED = 1.5
"""GiB of a GPU that its driver, NCCL and the allocator's gaps take."""
SHARE_OF_PEAK = {True: 0.35, False: 0.45}
"""That products reach, on GPUs and on CPUs; docs/measured.md has what was measured."""


@dataclass(frozen=True)
class Cluster:
    """Where the run will be."""

    nodes: int
    per_node: int
    device: Accelerator
    interconnect: float
    """Gbit/s of a host."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Way:
    """One of DeepSpeed's configurations, and what a rank holds with it."""

    name: str
    zero: Mapping[str, Any]
    memory: Memory
    fits: bool


@dataclass(frozen=True)
class Stage:
    """One of the models of a run, and the steps that it makes."""

    model: ModelConfig
    steps: int
    parameters: int
    trainable: int
    parts: Mapping[str, int]
    """Parameters by what they are for."""
    ways: tuple[Way, ...]
    """The run's own first."""
    bytes_sent: float
    """By each rank in a step, with the run's own."""
    compute: float
    """Seconds of a step's products."""
    transfer: float
    """Seconds of what is sent."""
    flops: float
    """Of a step, over all ranks, recomputation not counted."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a step: with all traffic behind the products, and with none."""
        return max(self.compute, self.transfer), self.compute + self.transfer


def plan(config: RunConfig, cluster: Cluster, precision: str, share: float) -> Iterator[Stage]:
    """The run's models in order. `config.model.vocab_size` is known; `share` of the peak is what products reach.

    Raises `ConfigError` if batches do not come out whole, or only the run will tell when it grows.
    """
    train = config.train
    whole = train.micro_batch_size * cluster.ranks
    if train.global_batch_size % whole:
        raise ConfigError(
            f"train.global_batch_size = {train.global_batch_size}: {cluster.ranks} ranks with "
            f"train.micro_batch_size = {train.micro_batch_size} need a multiple of {whole}"
        )
    tokens = train.global_batch_size * config.model.context
    models: Iterable[tuple[ModelConfig, int]] = [(config.model, train.steps)]
    if config.growth is not None:
        models = models_by_steps(as_growable(config.model), config.growth, tokens, train.steps)
    for model, steps in models:
        if steps:
            yield _stage(config, model, steps, cluster, precision, share)


def _stage(
    config: RunConfig, section: ModelConfig, steps: int, cluster: Cluster, precision: str, share: float
) -> Stage:
    train, device = config.train, cluster.device
    model = skeleton(section)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counted: dict[bool, Any] = {}

    def memory(zero: Mapping[str, Any]) -> Memory:
        autocast = precision == "bf16" and not by_weights(zero, precision, device.gpu)
        if autocast not in counted:
            recompute = train.activation_checkpointing
            counted[autocast] = count_activations(section, recompute, precision != "fp32", autocast)
        table = model.vocab_size * section.n_embd
        of = (parameters, trainable, table, model.vocab_size, train.micro_batch_size, section.context)
        return memory_of(Sizes(*of, counted[autocast]), Machine(cluster.ranks, device.gpu), zero, precision)

    ways: list[Way] = []
    for path in [train.ds_config, *sorted(train.ds_config.parent.glob("*.json"))]:
        zero = read_ds_config(path).get("zero_optimization", {})
        if path.stem not in [way.name for way in ways]:
            held = memory(zero)
            ways.append(Way(path.stem, zero, held, held.peak / GIB + RESERVED * device.gpu <= device.memory))
    own = ways[0].zero
    accumulation = train.global_batch_size // (train.micro_batch_size * cluster.ranks)
    sent = bytes_sent(own, cluster.ranks, parameters, trainable, accumulation, by_weights(own, precision, device.gpu))
    flops = train.global_batch_size * section.context * model.flops_per_token(section.context)
    recomputed = 1 + _recomputed(model, train.activation_checkpointing) / 3
    speed = cluster.interconnect * 1e9 / 8 if cluster.nodes > 1 else device.link * 1e9
    return Stage(
        section,
        steps,
        parameters,
        trainable,
        _parts(model),
        tuple(ways),
        sent,
        flops * recomputed / (cluster.ranks * device.peak(precision) * share),
        sent / speed,
        flops,
    )


def bytes_sent(
    zero: Mapping[str, Any], ranks: int, parameters: int, trainable: int, accumulation: int, by_weights: bool
) -> float:
    """What each rank sends in a step, by rings: (n - 1) / n of a tensor to reduce and scatter it, as much to gather it.

    A ring crosses the link of each host once, so this is what a host sends, too. At stages 2 and 3 gradients are
    reduced after every micro-batch, and at 3 weights are gathered twice for it.
    """
    stage, w = zero.get("stage", 0), 2 if by_weights else 4
    around = (ranks - 1) / ranks
    if stage == 0:
        return 2 * around * 4 * trainable
    if stage == 3:
        return accumulation * around * w * (2 * parameters + trainable)
    return around * w * trainable * ((accumulation if stage == 2 else 1) + 1)


def _recomputed(model: LanguageModel, policy: Any) -> float:
    """The share of blocks whose forward pass is made twice."""
    model.checkpoint_activations(policy)
    return len(model._recomputed) / max(1, model.n_blocks)


def _parts(model: LanguageModel) -> Counter[str]:
    """Parameters by what they are for."""
    kinds = (
        ("adapters", (".lora_",)),
        ("attention", (".attention.",)),
        ("MLPs", (".mlp.",)),
        ("convolutions", ("merges.", "spreads.")),
        ("embeddings", ("wte.", "wpe.")),
    )
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        kind = next((kind for kind, marks in kinds if any(mark in name for mark in marks)), "norms and others")
        parts[kind] += parameter.numel()
    return parts


def planned_precision(config: RunConfig, device: Accelerator) -> str:
    """What the run will multiply in; of `auto` a CPU is not timed for a plan."""
    asked = config.train.precision
    return ("bf16" if device.gpu else "fp32") if asked == "auto" else asked


def with_known_sizes(config: RunConfig) -> tuple[RunConfig, str | None]:
    """The configuration with the sizes that a run finds when it begins, and what was assumed if data are not there yet.

    Raises `UserError` as a run does.
    """
    config = with_sizes(config, fresh=True)
    if config.model.vocab_size is not None or all(Path(path).exists() for path in config.data.paths):
        return resolve_vocabulary(config)[0] if config.model.vocab_size is None else config, None
    model = config.model.model_copy(update={"vocab_size": 50304})
    return config.model_copy(update={"model": model}), "a vocabulary of 50,304, GPT-2's, for the data are not there yet"
