"""What a growth event does to a model, as data: no tensor is touched to make a plan, and each is made by one rule.

An operator says it by blocks. For three blocks that become six neighbours, AABBCC:

    Growth(model, sources=(0, 0, 1, 1, 2, 2))

and `make_plan` says it by tensors, from the names and shapes of both models:

    "blocks.3.mlp.up.weight":   Rule(("blocks.1.mlp.up.weight",), "identity")
    "blocks.3.mlp.up.lora_A":   Rule((), "initial")                              with adapters for the new stage
    "wte.weight":               Rule(("wte.weight",), "identity")

The plan is written down beside the checkpoints and hashed, so a resumed run knows what was done to it. A `Growth`
covers φ (sources) and τ (transforms) of the formalism, the model's section γ (gates), `optimizer_state` ω; the learning
rate λ is the trainer's.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

from torch import nn

from dsllm.config import LoRAConfig, ModelConfig
from dsllm.errors import CheckpointError, ConfigError, shown
from dsllm.growth.transforms import INITIAL, Rule
from dsllm.json_file import parse_json
from dsllm.models import skeleton
from dsllm.models.gpt2 import GPT2
from dsllm.models.growable import GrowableConfig
from dsllm.models.progressive import ProgressiveConfig
from dsllm.registry import MODELS
from dsllm.section import raise_problems, validate

S = TypeVar("S", bound=ModelConfig)

OptimizerState = Literal["copy", "zero", "asymmetric"]
"""Moments of copies: those of their source; zero, as for every tensor then; or kept by the first copy alone."""


@dataclass(frozen=True)
class Growth:
    """What an operator makes of a model, block by block."""

    model: GrowableConfig
    """The grown model's section."""
    sources: tuple[int | None, ...]
    """φ: target block j is made from source block sources[j]; None: new."""
    transforms: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """τ: for a target block, a transform by pattern of the names within it (as in fnmatch); else it is the identity."""
    tensors: Mapping[str, Rule] = field(default_factory=dict)
    """Rules of target parameters that `sources` and `transforms` cannot say, by full name."""
    dead_at_start: tuple[str, ...] = ()
    """Patterns of target parameters whose gradient is zero at the switch, by construction."""
    operator: str = ""
    preserves_function: bool = False
    """Both are filled in by `Operator`, from what it is registered as."""


@dataclass(frozen=True)
class GrowthPlan:
    """A growth event, tensor by tensor, as RUN/growth keeps it."""

    operator: str
    """The operator's name, or `merge`."""
    preserves_function: bool
    """Whether logits stay the same: bit for bit after an operator, to rounding in fp32 after a merge."""
    source: str
    """Identity of the checkpoint that it was made for."""
    model_before: dict[str, Any]
    model_after: dict[str, Any]
    """The `model` sections."""
    tensors: dict[str, Rule]
    """A rule for each parameter of the target by its canonical name, in the model's order."""
    optimizer_state: OptimizerState
    dead_at_start: tuple[str, ...] = ()
    """Patterns of trainable parameters whose gradient is zero at the switch, by construction, or may be."""

    @property
    def layers_before(self) -> int:
        return int(self.model_before["n_layer"])

    @property
    def layers_after(self) -> int:
        return int(self.model_after["n_layer"])

    @property
    def blocks_before(self) -> int:
        """Distinct blocks."""
        return section_of(self.model_before).distinct_blocks

    @property
    def blocks_after(self) -> int:
        """Distinct blocks."""
        return section_of(self.model_after).distinct_blocks

    def moments_from(self, name: str) -> str | None:
        """The source parameter whose moments the target parameter `name` starts from; None: from zero.

        A source that did not train has no moments; then it is zero, too.
        """
        rule = self.tensors[name]
        if self.optimizer_state == "zero" or not rule.is_copy:
            return None
        (source,) = rule.sources
        if self.optimizer_state == "asymmetric":
            heirs = (heir for heir, made in self.tensors.items() if made.is_copy and made.sources == rule.sources)
            return source if next(heirs) == name else None
        return source

    def is_dead_at_start(self, name: str) -> bool:
        """Whether a parameter is known to have no gradient at the switch."""
        return any(fnmatchcase(name, pattern) for pattern in self.dead_at_start)

    def hash(self) -> str:
        """SHA-256 of the plan's canonical JSON."""
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"hash": self.hash(), "plan": asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "GrowthPlan":
        """The plan that `to_json` wrote. Raises `CheckpointError` if it is damaged or was changed."""
        try:
            facts = parse_json(text)
            values = facts["plan"]
            tensors = {
                name: Rule(tuple(rule["sources"]), rule["transform"], rule["arguments"])
                for name, rule in values["tensors"].items()
            }
            plan = cls(**{**values, "tensors": tensors, "dead_at_start": tuple(values["dead_at_start"])})
            written = facts["hash"]
            found = plan.hash()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"a growth plan cannot be read ({shown(error)}); grow the checkpoint again") from None
        if found != written:
            raise CheckpointError(
                f"a growth plan has the hash {found[:12]}, {str(written)[:12]} was written; "
                f"it was changed or damaged, grow the checkpoint again"
            )
        return plan

    def check_source(self, identity: str) -> None:
        """Raises `CheckpointError` unless it was made for the checkpoint of that identity."""
        if identity != self.source:
            raise CheckpointError(
                f"a growth plan for checkpoint {self.source[:12]} does not match {identity[:12]}; make one for this"
            )


def as_growable(model: ModelConfig) -> GrowableConfig:
    """The section of a model that can grow: a plain GPT-2's as that of the same function, every block used once.

    Raises `ConfigError` for a model of another kind.
    """
    if isinstance(model, GrowableConfig):
        return model
    if MODELS[model.name] is not GPT2:  # a subclass may compute what it likes with a GPT-2's section
        raise ConfigError(
            f"model.name = {model.name}: not known block by block, as growing and export need it; take gpt2, or a "
            f"model whose section is a GrowableConfig"
        )
    return changed(ProgressiveConfig(), **{**model.model_dump(), "name": "progressive"})


def section_of(values: Mapping[str, Any]) -> GrowableConfig:
    """The section of a model that can grow, from its values as a plan keeps them; raises `ConfigError` for others."""
    section, problems = validate(MODELS[str(values.get("name"))].Config, values, "model")
    raise_problems(problems)
    assert section is not None
    return as_growable(section)


def changed(model: S, **changes: Any) -> S:
    """The section with other values, checked. Raises `ConfigError` with every problem."""
    section, problems = validate(type(model), {**model.model_dump(), **changes}, "model")
    raise_problems(problems)
    assert section is not None
    return section


def settled(model: GrowableConfig) -> GrowableConfig:
    """The section of a model after its merge, of plain blocks that are all there."""
    return changed(model, bases=None, **dict.fromkeys(model.temporary))


def deepened(
    model: GrowableConfig, sources: Sequence[int], *, changes: Mapping[str, Any] | None = None, **more: Any
) -> Growth:
    """The growth whose target block j is made from block sources[j], in its place and used as often as that one is.

    `changes` go into the model's section beside the depth, `more` into the `Growth`.
    """
    return Growth(changed(model, **model.remade(sources), **(changes or {})), tuple(sources), **more)


def check_places(growth: Growth, before: GrowableConfig) -> None:
    """Raises `ConfigError` if a block of the grown model is made from one that stands elsewhere, as on another level.

    Its width may be another there; and where it is not, what the block has learnt is still about other vectors.
    """
    places = before.block_places
    for block, (place, source) in enumerate(zip(growth.model.block_places, growth.sources, strict=False)):
        if source is not None and places[source] != place:
            raise ConfigError(
                f"growth.operator = {growth.operator}: would make new block {block}, in {place}, from old block "
                f"{source}, in {places[source]}; take interpose, zero_init, dropin or random, which stay in their place"
            )


def make_plan(
    growth: Growth,
    before: GrowableConfig,
    source: str,
    optimizer_state: OptimizerState = "copy",
    lora: LoRAConfig | None = None,
    step: int = 0,
) -> GrowthPlan:
    """The plan of a growth event at optimizer step `step`, for the checkpoint of identity `source`.

    With `lora` the blocks get fresh adapters, and copies that begin as the same tensors share them. Raises
    `CheckpointError` if the source is not settled, `ConfigError` if the operator's rules do not fit the two models.
    """
    check_settled(before)
    check_places(growth, before)
    after = growth.model
    if after.gate is not None:
        after = changed(after, gate={**after.gate.model_dump(), "start": step})
    dead = (*growth.dead_at_start, *after.waiting(step))
    if lora is not None:
        after = changed(after, lora=lora.model_dump(), bases=_bases(growth))
        dead = (*dead, "*.lora_A")  # lora_B is zero, so nothing flows back through it yet
    return GrowthPlan(
        operator=growth.operator,
        preserves_function=growth.preserves_function,
        source=source,
        model_before=before.model_dump(mode="json"),
        model_after=after.model_dump(mode="json"),
        tensors=_rules(growth, Names.of(before), Names.of(after)),
        optimizer_state=optimizer_state,
        dead_at_start=dead,
    )


def check_settled(model: GrowableConfig) -> None:
    """Raises `CheckpointError` if the model has parts that no growth event may carry along."""
    for name in model.unsettled:
        raise CheckpointError(f"model.{name}: a checkpoint with {model.temporary[name]} does not grow; merge it first")
    for name, what in model.last.items():
        if getattr(model, name) is not None:
            raise CheckpointError(f"model.{name}: a model with {what} does not grow; grow before adding one")


@dataclass(frozen=True)
class Names:
    """A model's parameters by name, without their values."""

    shapes: dict[str, tuple[int, ...]]
    """By canonical name, in the model's order."""
    aliases: dict[str, str]
    """Every name, canonical or not, to the canonical one."""

    @classmethod
    def of(cls, config: ModelConfig) -> "Names":
        model = skeleton(config)
        canonical: dict[nn.Parameter, str] = {parameter: name for name, parameter in model.named_parameters()}
        aliases = {name: canonical[p] for name, p in model.named_parameters(remove_duplicate=False)}
        return cls({name: tuple(parameter.shape) for parameter, name in canonical.items()}, aliases)


def _rules(growth: Growth, before: Names, after: Names) -> dict[str, Rule]:
    rules = {name: _rule(growth, name, before) for name in after.shapes}
    for name in growth.tensors:
        if name not in after.shapes:
            raise ConfigError(f"operator {growth.operator}: a rule for {name}, which the grown model does not have")
    for name, rule in rules.items():
        shapes = [before.shapes.get(source) for source in rule.sources]
        if None in shapes or ((rule.is_copy or rule.transform == "zero") and shapes != [after.shapes[name]]):
            raise ConfigError(
                f"operator {growth.operator}: {name} {after.shapes[name]} cannot be made by {rule.transform} "
                f"of {', '.join(rule.sources)}; see Growth.sources and Growth.tensors"
            )
    return rules


def _rule(growth: Growth, name: str, before: Names) -> Rule:
    """How the target parameter `name` is made; a tensor that the source has not begins anew."""
    if name in growth.tensors:
        rule = growth.tensors[name]
        return replace(rule, sources=tuple(before.aliases.get(source, source) for source in rule.sources))
    origin, transform = name, "identity"
    if name.startswith("blocks."):
        _, block, within = name.split(".", 2)
        source = growth.sources[int(block)]
        if source is None:
            return Rule((), INITIAL)
        origin = f"blocks.{source}.{within}"
        transform = _transform(growth.transforms.get(int(block), {}), within)
    if origin not in before.aliases:
        return Rule((), INITIAL)
    return Rule((before.aliases[origin],), transform)


def _transform(patterns: Mapping[str, str], within: str) -> str:
    return next((what for pattern, what in patterns.items() if fnmatchcase(within, pattern)), "identity")


def _bases(growth: Growth) -> list[int]:
    """A number for each target block, equal where blocks begin as the same tensors: the first such block's."""
    first: dict[Any, int] = {}
    numbers = []
    for block, source in enumerate(growth.sources):
        ruled = any(name.startswith(f"blocks.{block}.") for name in growth.tensors)
        begins = (
            (block,)
            if source is None or ruled
            else (source, tuple(sorted(growth.transforms.get(block, {}).items())), "")
        )
        numbers.append(first.setdefault(begins, block))
    return numbers


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
