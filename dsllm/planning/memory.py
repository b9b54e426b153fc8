"""The memory of one rank: what DeepSpeed and torch hold, and when the most of it is there at once.

    P parameters of which T train, on n ranks; w bytes of a weight: 2 in half precision by the weights, else 4

                  stage 0    1          2          3
    weights       w P        w P        w P        w P / n       under autocast also the weights that it has cast
    masters       -          4 T / n    4 T / n    4 T / n       offloaded: on the host, with the moments
    moments       8 T        8 T / n    8 T / n    8 T / n
    gradients     4 T        4 T        4 T / n    4 T / n

    forward       all of that but gradients, + activations + the head's loss + DeepSpeed's buckets (+ gathered weights)
    backward      all of that, + the head's gradients + a flat copy of the rank's gradients + buckets (+ gathered ones)

The larger of the two is the peak. A GPU's buckets are there in full, `reduce_bucket_size` numbers each (DeepSpeed 0.19:
stage_1_and_2.py `setup_buckets`, stage3.py); a CPU's cost what is written into them. Gradients of stages 2 and 3 come
block by block as activations go, so the forward peak has none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsllm.models.head import LOGITS_HELD
from dsllm.planning.activations import Activations

BUCKET = 500_000_000
"""DeepSpeed's `reduce_bucket_size`."""
LIVE = 1_000_000_000
"""Its `stage3_max_live_parameters`."""


@dataclass(frozen=True)
class Sizes:
    """A model, and how it is trained."""

    parameters: int
    trainable: int
    embedding: int
    """Numbers of its matrix, which is the head's as well."""
    vocabulary: int
    sequences: int
    """In a micro-batch."""
    context: int
    activations: Activations


@dataclass(frozen=True)
class Machine:
    """Where: the kind of device and how many ranks."""

    ranks: int
    gpu: bool


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for, of one rank."""

    forward: Mapping[str, float]
    backward: Mapping[str, float]
    host: float = 0.0
    """Of the host's memory, where states are offloaded."""

    @property
    def peak(self) -> float:
        return max(sum(self.forward.values()), sum(self.backward.values()))

    @property
    def parts(self) -> Mapping[str, float]:
        """Of the moment when the most is there."""
        return max((self.forward, self.backward), key=lambda parts: sum(parts.values()))


def by_weights(zero: Mapping[str, Any], precision: str, gpu: bool) -> bool:
    """Whether half precision is that of the weights, and not autocast's; see `ds_config`."""
    return precision == "fp16" or (precision == "bf16" and gpu and zero.get("stage", 0) >= 2)


def memory_of(sizes: Sizes, machine: Machine, zero: Mapping[str, Any], precision: str) -> Memory:
    """The memory of one rank with DeepSpeed's section `zero_optimization`."""
    stage, n = zero.get("stage", 0), machine.ranks
    p, t, embedding = sizes.parameters, sizes.trainable, sizes.embedding
    half, weights_half = precision != "fp32", by_weights(zero, precision, machine.gpu)
    w = 2 if weights_half else 4
    part = n if stage else 1
    states = {
        "weights": w * p / (n if stage == 3 else 1) + (0 if weights_half or not half else sizes.activations.cast),
        "masters": 4 * t / n if stage else 0,
        "moments": 8 * t / part,
    }
    gradients = {"gradients": 4 * t / (n if (stage >= 2 and machine.gpu) or stage == 3 else 1)}
    host = 0.0
    if "offload_optimizer" in zero:
        host = states.pop("masters") + states.pop("moments") + 4 * t / part
    if "offload_param" in zero:
        host += states["weights"]
        states["weights"] = 0
    rows = min(
        sizes.sequences * sizes.context, max(1, LOGITS_HELD["cuda" if machine.gpu else "cpu"] // sizes.vocabulary)
    )
    logits = rows * sizes.vocabulary * ((2 if half else 4) + 4)
    kept = sizes.activations.sequence + sizes.activations.recomputed
    forward = {**states, "activations": sizes.sequences * kept, "loss": logits + 4 * embedding}
    backward = {**states, **gradients, "loss": 12 * embedding, "flat gradients": 4 * t / n if stage else 0}
    buckets = _buckets(zero, stage, half, weights_half, machine, p, t)
    forward |= buckets
    backward |= buckets
    if stage == 3:
        early = {"gradients": 4 * t / n, "gathered": w * min(p, zero.get("stage3_max_live_parameters", LIVE))}
        forward |= early if machine.gpu else {"gathered": early["gathered"]}
        backward |= {"gathered": early["gathered"]}
    return Memory(forward, backward, host)


def _buckets(
    zero: Mapping[str, Any], stage: int, half: bool, weights_half: bool, machine: Machine, p: int, t: int
) -> dict[str, float]:
    """What DeepSpeed collects gradients in before it reduces them."""
    if stage == 0:
        return {}
    w = 2 if weights_half else 4
    size = zero.get("reduce_bucket_size", BUCKET)
    if not machine.gpu:
        return {"buckets": 4 * t * min(machine.ranks, 2)} if stage == 3 else {}
    if stage == 3:
        return {"buckets": w * size}
    if not zero.get("contiguous_gradients", True):
        return {}
    twice = 2 if zero.get("overlap_comm", False) else 1
    types = 2 if half and not weights_half else 1  # autocast's own and fp32, a bucket for each
    return {"buckets": w * size * twice * types}
