"""The receipt of a structural event: what was promised, and what was found in the engine that came of it.

    grown by untie at step 50: 3 → 6 distinct blocks, 12 layers executed
      loss 4.152319 → 4.152319 (0.0e+00), KL 0.0e+00, largest change of a logit 0.0e+00: the function is preserved
      61 tensors are what the plan says, bit for bit; 48 are new; frozen base 5f3a…: unchanged
      1,234,567 parameters train, each in one group; all have a gradient

The first two lines are known before the first step, the last with its gradients.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsllm.data.files import write_atomically
from dsllm.errors import CheckpointError
from dsllm.growth.grow import Growing, Target
from dsllm.growth.plan import GrowthPlan
from dsllm.json_file import parse_json
from dsllm.store import Kind, TensorStore, checksum
from dsllm.training.probe import Difference, Probe
from dsllm.training.tensors import EngineTensors
from dsllm.training.world import World

R = TypeVar("R", bound="Receipt")


@dataclass
class Receipt:
    """All that was checked; `problems` is empty if every promise was kept."""

    step: int
    operator: str
    plan: str
    """Hash of the growth plan."""
    preserves_function: bool
    layers: tuple[int, int]
    """Executed, before and after."""
    blocks: tuple[int, int]
    """Distinct, before and after."""
    loss_before: float
    loss_after: float
    difference: Difference
    tolerance: float
    """What the loss of an operator that preserves the function may move by, nats."""
    copied: int
    """Tensors made of the source, moments included, and compared with what the plan makes of it, bit for bit."""
    new: int
    """Tensors that begin now, compared with what they are to begin as."""
    frozen_sha256: str | None
    """Of the frozen base in the grown checkpoint, which the engine's was compared with; None if nothing is frozen."""
    parameters: int
    trainable_parameters: int
    problems: list[str]
    gradients_checked: bool = False
    """False if another event followed before any step."""
    without_gradient: list[str] = field(default_factory=list)
    """Parameters that could not have one yet, as the plan says."""
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_written: int = 0

    @classmethod
    def of(
        cls: type[R], plan: GrowthPlan, step: int, before: Probe, after: Probe, problems: list[str], **facts: Any
    ) -> R:
        """The receipt of a plan carried out at `step`, with the verdict on both probes; `facts`: its other fields."""
        difference, tolerance, wrong = judge(plan, before, after)
        return cls(
            step=step,
            operator=plan.operator,
            plan=plan.hash(),
            preserves_function=plan.preserves_function,
            layers=(plan.layers_before, plan.layers_after),
            blocks=(plan.blocks_before, plan.blocks_after),
            loss_before=before.loss,
            loss_after=after.loss,
            difference=difference,
            tolerance=tolerance,
            problems=[*wrong, *problems],
            **facts,
        )

    def write(self, path: Path) -> None:
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Receipt | None":
        """The receipt that `write` wrote, if it did."""
        if not path.exists():
            return None
        facts = parse_json(path.read_bytes())
        return cls(**{**facts, "difference": Difference(**facts["difference"])})

    def record(self) -> dict[str, Any]:
        """The `growth` record of metrics.jsonl."""
        facts = asdict(self)
        for key in ("step", "layers", "blocks", "difference", "without_gradient"):
            del facts[key]
        change = {f"delta_{name}": value for name, value in asdict(self.difference).items()}
        depth = {f"{name}_{when}": getattr(self, name)[i] for name in ("layers", "blocks") for i, when in WHEN}
        return {**depth, **facts, **change, "without_gradient": len(self.without_gradient)}

    def words(self) -> str:
        """The receipt for a person."""
        change = self.difference
        verdict = "the function is preserved" if self._preserved() else f"a jump, as {self.operator} makes"
        frozen = f"; frozen base {self.frozen_sha256[:12]}: unchanged" if self.frozen_sha256 else ""
        depth = (
            f"{self.blocks[0]} → {self.blocks[1]} distinct blocks, {self.layers[0]} → {self.layers[1]} layers executed"
        )
        lines = [
            f"{self.operator} at step {self.step}: {depth}",
            f"  loss {self.loss_before:.6f} → {self.loss_after:.6f} ({change.loss:+.1e}), KL {change.kl:.1e}, "
            f"largest change of a logit {change.logit:.1e}: {verdict}",
            f"  {self.copied} tensors are what the plan says, bit for bit; {self.new} are new{frozen}",
            f"  {self._training()}",
            "  " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.seconds.items()),
        ]
        if self.problems:
            lines[1] = lines[1].replace(f": {verdict}", "")
            lines[2:4] = [f"  BROKEN: {problem}" for problem in self.problems]
        return "\n".join(lines)

    def _training(self) -> str:
        alive = ", each with a gradient" if self.gradients_checked else "; the next event comes before any step"
        if self.without_gradient:
            alive += f", but for {len(self.without_gradient)} tensors that have none yet, as planned"
        return f"{self.trainable_parameters:,} of {self.parameters:,} parameters train, each in one group{alive}"

    def _preserved(self) -> bool:
        return self.preserves_function and abs(self.difference.loss) <= self.tolerance


WHEN = ((0, "before"), (1, "after"))


def loss_tolerance(plan: GrowthPlan, before: Probe, after: Probe) -> float:
    """Nats by which an event that preserves the function may move the loss.

    An operator does the same arithmetic before and after: nothing, under the same conditions. A merge puts B A x and
    W x into one product, and rounds otherwise.
    """
    half = before.conditions["precision"] != "fp32"
    if plan.operator == "merge":
        return 1e-2 if half else 1e-6 * max(1.0, before.loss)
    if before.conditions != after.conditions:
        return 1e-2 if half else 1e-5
    return 0.0


def judge(plan: GrowthPlan, before: Probe, after: Probe) -> tuple[Difference, float, list[str]]:
    """What the model says before and after: the difference, what the loss may move by, and what is wrong with it."""
    difference, tolerance = Difference.of(before, after), loss_tolerance(plan, before, after)
    wrong = []
    if not math.isfinite(after.loss):
        wrong.append(f"the loss is {after.loss} after {plan.operator}")
    elif plan.preserves_function and abs(difference.loss) > tolerance:
        wrong.append(f"{plan.operator} preserves the function, yet the loss moved by {difference.loss:+.3e} nats")
    elif plan.preserves_function and tolerance == 0 and difference.logit != 0:
        wrong.append(f"{plan.operator} preserves the function, yet a logit moved by {difference.logit:.3e}")
    return difference, tolerance, wrong


def check_tensors(
    tensors: EngineTensors, growing: Growing, store: TensorStore, world: World
) -> tuple[int, int, list[str]]:
    """Compare every tensor of the engine with what the plan makes of the source, each rank a share.

    Gives how many of them come from the source, how many are new, and what is wrong.
    """
    made, new, wrong = 0, 0, list[str]()
    promised = {(target.kind, target.name): target for target in growing.targets()}
    position = 0
    for name in tensors.parameters:
        for kind in tensors.kinds(name):
            whole = tensors.whole(name, kind)
            mine, position = position % world.size == world.rank, position + 1
            # The others wait in `whole` for this rank too, so what goes wrong here is said at the end.
            if not mine:
                continue
            target = promised.get((kind, name))
            try:
                right = _as_planned(whole, kind, name, target, growing, store)
            except CheckpointError as error:
                wrong.append(str(error))
                continue
            if target is not None:
                new += target.rule.is_new
                made += not target.rule.is_new
            if not right:
                wrong.append(f"{kind} of {name} is not what the plan makes of {growing.source.folder}")
    shares = world.everyone((made, new, wrong))
    return sum(s[0] for s in shares), sum(s[1] for s in shares), [line for s in shares for line in s[2]]


def _as_planned(
    whole: Tensor, kind: Kind, name: str, target: Target | None, growing: Growing, store: TensorStore
) -> bool:
    if target is None:  # moments that nobody left behind
        return not whole.any()
    if not target.rule.is_copy:
        expected = growing.value(target)
        return torch.equal(whole.cpu(), expected.to(whole.dtype)) and torch.equal(store[kind, name], expected)
    source = growing.source.entry(target.kind, target.rule.sources[0])
    assert source is not None
    if whole.dtype == torch.float32:
        return checksum(whole) == source.sha256
    # Half weights: the file is the source's, and the engine's are its values, rounded.
    return checksum(store[kind, name]) == source.sha256 and torch.equal(whole.cpu(), store[kind, name].to(whole.dtype))


def check_groups(tensors: EngineTensors) -> list[str]:
    """Parameters that train but are not in exactly one of the optimizer's groups, and the reverse."""
    times = tensors.times_in_groups()
    wrong = []
    for name, parameter in tensors.parameters.items():
        expected = 1 if parameter.requires_grad else 0
        if times.get(name, 0) != expected:
            wrong.append(f"{name} is in {times.get(name, 0)} groups of the optimizer, not in {expected}")
    return wrong


def check_gradients(tensors: EngineTensors, growing: Growing) -> tuple[list[str], list[str]] | None:
    """Parameters that train without a gradient: those of which the plan says so, and the others.

    None if a gradient is not finite, as in fp16 while its scale is being found: then the next step has to tell.
    """
    silent = []
    for name, parameter in tensors.parameters.items():
        if parameter.requires_grad:
            largest = tensors.gradient(name).abs().max()
            if not largest.isfinite():
                return None
            if largest == 0:
                silent.append(name)
    planned = [name for name in silent if growing.plan.is_dead_at_start(name)]
    return planned, [f"{name} trains, but has no gradient" for name in silent if name not in planned]


def frozen_digest(tensors: EngineTensors, store: TensorStore) -> str | None:
    """The checksum of the frozen base in a checkpoint; None if nothing is frozen."""
    frozen = [name for name in tensors.parameters if tensors.is_frozen(name)]
    return store.digest(frozen) if frozen else None


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Note the seconds that are spent within it."""
    begun = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - begun
