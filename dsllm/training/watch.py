"""How layers grow apart while they train: their weights, their gradients, and what each adds to the residual stream.

Of four blocks, 0 and 1 are copies of one ancestor, 2 and 3 of another: lineage (0, 0, 1, 1).

    divergence         0     1     2     3     ‖W_i - W_j‖ / ‖W_i‖ of the matrices as they act: adapters merged,
                  0    0   0.02  1.41  1.40    mixtures mixed. All pairs as a picture; as curves the copies 0-1, 2-3.
                  1  0.02    0   1.42  1.41
    gradient_cosine    0-1: 0.93   2-3: 0.88   Near 1 copies are pushed the same way, and stay alike.
    gradient_norm      0.31  0.29  0.33  0.40  Of a block's own parameters that train, before clipping.
    residual_ratio     0.52  0.21  0.18  0.30  ‖block(h) - h‖ / ‖h‖ of each executed layer, the mean over tokens.

Of blocks on different levels, whose matrices have other shapes, no distance is known.
Every rank puts tensors together one at a time. Distances and cosines are computed from at most 2**18 entries of each,
evenly spaced: exact for small models, an estimate good to about a hundredth for large ones. Norms are always exact.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsllm.models.gpt2 import GPT2
from dsllm.models.growable import Growable
from dsllm.models.lora import LoRALinear, merged
from dsllm.models.mixture import MixtureLinear, mixed
from dsllm.training.heat_map import SCALE, heat_map
from dsllm.training.monitor import Monitor
from dsllm.training.progress import Progress
from dsllm.training.tensors import EngineTensors

Pair = tuple[int, int]

MOST_ENTRIES = 2**18
"""Entries of a tensor that distances and cosines are computed from, at most."""


@dataclass(frozen=True)
class Divergence:
    """Relative distances ‖W_i - W_j‖ / ‖W_i‖ between blocks, each (n, n) for n distinct blocks; NaN between shapes."""

    together: np.ndarray
    """Over all matrices of a block."""
    by_matrix: Mapping[str, np.ndarray]
    """Of each kind of matrix, as `mlp.up`."""


@dataclass(frozen=True)
class Gradients:
    """Gradients of one step, without fp16's loss scale and before clipping."""

    norms: list[float]
    """Of each distinct block's own trainable parameters."""
    cosines: dict[Pair, float]
    """Between the gradients of copies; NaN where one is zero."""


@dataclass(frozen=True)
class Layers:
    """What one look at the layers has seen."""

    copies: tuple[Pair, ...]
    divergence: Divergence
    gradients: Gradients
    residual_ratios: Sequence[float]
    """Of each executed layer; empty if no forward pass was watched."""

    def record(self) -> dict[str, Any]:
        """The figures for metrics.jsonl, to six digits: those of pairs by `"0-1"`, those of layers as lists."""
        by_matrix = self.divergence.by_matrix.items()
        return {
            "divergence": self._of_copies(self.divergence.together),
            "divergence_by_matrix": {name: self._of_copies(distances) for name, distances in by_matrix},
            "gradient_cosine": {_label(pair): _rounded(cosine) for pair, cosine in self.gradients.cosines.items()},
            "gradient_norm": [_rounded(norm) for norm in self.gradients.norms],
            "residual_ratio": [_rounded(ratio) for ratio in self.residual_ratios],
        }

    def scalars(self) -> dict[str, float]:
        """The finite ones as points of curves: `divergence/0-1`, `gradient_cosine/0-1`, `gradient_norm/3`, …

        Of all pairs only the copies, and of a block's matrices all together: at most four curves for a layer.
        """
        figures = {name: figure for name, figure in self.record().items() if name != "divergence_by_matrix"}
        points = {
            f"{name}/{key}": value
            for name, figure in figures.items()
            for key, value in (figure.items() if isinstance(figure, dict) else enumerate(figure))
        }
        return {name: value for name, value in points.items() if math.isfinite(value)}

    def write(self, monitor: Monitor, progress: Progress) -> None:
        """A `layers` record, and for TensorBoard the curves and the heat map of divergence."""
        monitor.record("layers", progress, self.record())
        monitor.scalars("layers", progress, self.scalars())
        monitor.image(f"layers/divergence_{SCALE}", progress, heat_map(self.divergence.together))

    def _of_copies(self, distances: np.ndarray) -> dict[str, float]:
        return {_label(pair): _rounded(float(distances[pair])) for pair in self.copies}


class Watch:
    """Looks at the blocks of a model in its engine; `lineage` names the ancestor of each distinct block.

        with watch.residuals() as ratios:
            loss = engine(...).loss
        engine.backward(loss)
        layers = watch.look(ratios)                 # between the last backward pass and the update
        if rank == 0: layers.write(monitor, progress)

    `divergence`, `gradients` and `look` are collective over the ranks. A rank then holds a whole tensor, another of its
    size while adapters are merged, and 2 MiB for each block.
    """

    def __init__(self, model: GPT2 | Growable, tensors: EngineTensors, lineage: Sequence[int]):
        if len(lineage) != len(model.blocks):
            raise ValueError(f"a lineage of {len(lineage)} blocks for a model of {len(model.blocks)}: {lineage}")
        self.model, self.tensors, self.lineage = model, tensors, tuple(lineage)
        self.copies = neighbouring_copies(lineage)

    def look(self, residual_ratios: Sequence[float] = ()) -> Layers:
        """Everything at once, with what `residuals` gave in this step."""
        return Layers(self.copies, self.divergence(), self.gradients(), residual_ratios)

    @torch.no_grad()
    def divergence(self) -> Divergence:
        """How far the blocks' matrices are from each other, exact for those of up to 2**18 entries."""
        n = len(self.lineage)
        squares, norms = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        by_matrix = {}
        for name, module in self.model.blocks[0].named_modules():
            if not isinstance(module, (nn.Linear, MixtureLinear)):
                continue
            by_size: dict[int, dict[int, Tensor]] = {}
            for block in range(n):
                entries, numel = self._matrix(f"blocks.{block}.{name}")
                by_size.setdefault(numel, {})[block] = entries
            distances, lengths = torch.full_like(squares, math.nan), torch.zeros_like(norms)
            for numel, rows in by_size.items():
                blocks, matrices = torch.tensor(list(rows)), torch.stack(list(rows.values()))  # (m,), (m, s)
                weight = numel / matrices.shape[1]  # so that a sampled matrix counts as the whole one
                # Not by products, whose rounding would swallow what differs between copies.
                apart = torch.cdist(matrices, matrices, compute_mode="donot_use_mm_for_euclid_dist").square()
                distances[blocks[:, None], blocks] = weight * apart
                lengths[blocks] = weight * matrices.square().sum(dim=1)
            by_matrix[name] = _relative(distances, lengths)
            squares += distances
            norms += lengths
        return Divergence(_relative(squares, norms), by_matrix)

    @torch.no_grad()
    def gradients(self) -> Gradients:
        """Norms and cosines of the blocks' gradients, between the last backward pass and the update.

        Only parameters that are one block's own count, not mixtures' templates. Of adapters it is their own gradients
        that are compared: each lora_B writes in the random basis of its lora_A, so that the cosine starts near 0.
        """
        n = len(self.lineage)
        squares, sampled, dots = [0.0] * n, [0.0] * n, dict.fromkeys(self.copies, 0.0)
        for within, blocks in self._own().items():
            newest: dict[int, tuple[int, Tensor]] = {}  # of each ancestor, the copy that came last and its gradient
            for block in blocks:
                gradient = self.tensors.gradient(f"blocks.{block}.{within}")
                entries = evenly_spaced(gradient)
                weight = gradient.numel() / len(entries)
                squares[block] += float(torch.linalg.vector_norm(gradient, dtype=torch.float32)) ** 2
                sampled[block] += weight * float(entries @ entries)
                before, others = newest.get(self.lineage[block], (block, entries))
                if (before, block) in dots:
                    dots[before, block] += weight * float((others * entries).sum())
                newest[self.lineage[block]] = block, entries
        scale = float(getattr(self.tensors.engine.optimizer, "loss_scale", 1.0))
        lengths = {pair: math.sqrt(sampled[pair[0]] * sampled[pair[1]]) for pair in dots}
        cosines = {pair: dot / lengths[pair] if lengths[pair] else math.nan for pair, dot in dots.items()}
        return Gradients([math.sqrt(square) / scale for square in squares], cosines)

    @contextmanager
    def residuals(self) -> Iterator[list[float]]:
        """A list that is filled at the end: each executed layer's ‖block(h) - h‖ / ‖h‖ in the forward passes within.

        The mean over this rank's tokens and passes. A block behind a gate counts as far as the gate is open, one used
        twice is two layers, and those of a second column follow the first's. What is recomputed does not count.
        """
        sums: dict[int, Tensor] = {}
        passes = 0
        run_block: Callable[..., Tensor] = self.model.run_block

        def watched(index: int, block: nn.Module, *inputs: Any) -> Tensor:
            nonlocal passes
            out = run_block(index, block, *inputs)
            with torch.no_grad():
                after = out if isinstance(out, Tensor) else out[0]  # what goes on in the stream comes first
                before, after = inputs[0].detach().float(), after.detach().float()
                ratio = ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean()  # (B, T) to ()
            sums[index] = sums.get(index, 0.0) + ratio
            passes += index == 0
            return out

        ratios: list[float] = []
        # On the instance: hooks on the blocks would see neither gates nor which of its uses a call is, and would see
        # the calls that recompute.
        vars(self.model)["run_block"] = watched
        try:
            yield ratios
        finally:
            del vars(self.model)["run_block"]
        if sums:
            ratios += (torch.stack([sums[index] for index in sorted(sums)]) / passes).tolist()

    def _matrix(self, name: str) -> tuple[Tensor, int]:
        """Evenly spaced entries of the matrix by which a linear map acts, and how many it has in all."""
        module = self.model.get_submodule(name)

        def whole(attribute: str) -> Tensor:
            full = f"{name}.{attribute}"
            return self.tensors.whole(self.tensors.aliases.get(full, full))

        if isinstance(module, MixtureLinear):  # mixing and choosing entries can be done in either order
            chosen = []
            for k in range(module.n_templates):
                template = whole(f"template_{k}")
                chosen.append(evenly_spaced(template))
            return mixed(whole("coefficients").to(chosen[0]), chosen), template.numel()
        weight = whole("weight")
        if isinstance(module, LoRALinear):
            weight = merged(weight, whole("lora_A"), whole("lora_B"), module.scale, module.parts)
        return evenly_spaced(weight), weight.numel()

    def _own(self) -> dict[str, list[int]]:
        """Names within a block of trainable parameters that it shares with none, and the blocks that have them."""
        shared = set(self.tensors.aliases.values())
        own: dict[str, list[int]] = {}
        for name, parameter in self.tensors.parameters.items():
            if name.startswith("blocks.") and parameter.requires_grad and name not in shared:
                _, block, within = name.split(".", 2)
                own.setdefault(within, []).append(int(block))
        return own


def neighbouring_copies(lineage: Sequence[int]) -> tuple[Pair, ...]:
    """Pairs of blocks of one ancestor with no other copy of it between them: (0, 1, 0, 1, 0) has 0-2, 1-3 and 2-4."""
    newest: dict[int, int] = {}
    pairs = []
    for block, ancestor in enumerate(lineage):
        if ancestor in newest:
            pairs.append((newest[ancestor], block))
        newest[ancestor] = block
    return tuple(sorted(pairs))


def evenly_spaced(tensor: Tensor, most: int = MOST_ENTRIES) -> Tensor:
    """Up to `most` entries of a tensor, in fp64 on the CPU; all of them if there are no more.

    Which ones depends on the shape alone. The stride has no divisor in common with the rows' length, so that every
    column is met.
    """
    flat = tensor.reshape(-1)
    stride = -(-flat.numel() // most)
    while stride > 1 and math.gcd(stride, tensor.shape[-1]) > 1:
        stride += 1
    return flat[::stride].to("cpu", torch.float64)


def _relative(squares: Tensor, norms: Tensor) -> np.ndarray:
    """√squares (n, n), each row divided by the length whose square is in norms (n,); 0 between equals, also zeros."""
    ratios = (squares / norms[:, None]).sqrt()
    result: np.ndarray = torch.where(squares == 0, 0.0, ratios).numpy()
    return result


def _label(pair: Pair) -> str:
    return f"{pair[0]}-{pair[1]}"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
