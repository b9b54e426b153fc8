"""The sizes of a convolution-attention model, level by level, and what has to fit together.

    strides (4, 4)       level 0: 1 vector a token     level 1: 1 every 4     level 2: 1 every 16
    widths               144                           288                    480
    encoder (1, 1)       1 block, Merge                1 block, Merge
    middle 4                                                                  4 blocks
    decoder (1, 1)       Spread, 1 block               Spread, 1 block

Twelve attention layers: each block has one, each Merge and each Spread. Growth copies blocks within their places: those
of one level on the way in, in the middle, and of one level on the way out. The Merges and Spreads stay as they are.
"""

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, count
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from dsllm.models.growable import GrowableConfig

Kind = Literal["block", "merge", "spread"]


class ConvAttentionConfig(GrowableConfig):
    """The `model` section of a run with convolution attention; n_embd is the width of the vocabulary and the head."""

    name: str = "conv_attention"
    """The model, by its registered name."""
    strides: tuple[PositiveInt, ...] = (4, 4, 4)
    """How many vectors of a level become one of the next; none: level 0 alone."""
    widths: tuple[PositiveInt, ...] = (48, 96, 192, 384)
    """Width of each level, the outermost first."""
    encoder: tuple[NonNegativeInt, ...] = (0, 1, 1)
    """Blocks of each level but the innermost, on the way in."""
    middle: NonNegativeInt = 2
    """Blocks of the innermost level."""
    decoder: tuple[NonNegativeInt, ...] = (0, 1, 1)
    """Blocks of each level but the innermost, on the way out; the outermost level first, too."""
    taps: tuple[PositiveInt, ...] | None = None
    """Vectors that each convolution reads, multiples of the strides; null: the strides."""
    expansion: PositiveInt = 1
    """Hidden width of the convolutions, as a multiple of the width that they write."""
    windows: tuple[PositiveInt | None, ...] | None = None
    """Of each level, its vectors that a vector sees in attention, itself included, or null; null: all before it."""
    read_out: tuple[NonNegativeInt, ...] | None = None
    """Levels that the head reads; null: all."""

    @model_validator(mode="before")
    @classmethod
    def _layers_follow(cls, values: Any) -> Any:
        """n_layer follows from the depths, unless it is given, and then must agree."""
        if not isinstance(values, Mapping) or values.get("n_layer") is not None:
            return values
        depths = {key: values.get(key, cls.model_fields[key].default) for key in ("encoder", "middle", "decoder")}
        try:
            layers = sum(depths["encoder"]) + depths["middle"] + sum(depths["decoder"]) + 2 * len(depths["encoder"])
            return {**values, "n_layer": max(1, int(layers))}  # none at all is a problem of the depths
        except (TypeError, ValueError, OverflowError):  # what is wrong with them is said field by field
            return values

    @property
    def spans(self) -> tuple[int, ...]:
        """Tokens per vector of each level, the products of the strides: (1, 4, 16, 64)."""
        return tuple(accumulate(self.strides, operator.mul, initial=1))

    @property
    def convolution_taps(self) -> tuple[int, ...]:
        return self.strides if self.taps is None else self.taps

    @property
    def attention_windows(self) -> tuple[int | None, ...]:
        return (None,) * len(self.widths) if self.windows is None else self.windows

    @property
    def levels_read(self) -> tuple[int, ...]:
        """Levels that the head reads, in their order."""
        return tuple(range(len(self.widths))) if self.read_out is None else tuple(sorted(self.read_out))

    @property
    def runs(self) -> tuple[tuple[Kind, int], ...]:
        """Every attention layer in the order of execution: what holds it, and its level."""
        inner = len(self.strides)
        runs: list[tuple[Kind, int]] = []
        for level, depth in enumerate(self.encoder):
            runs.extend([("block", level)] * depth)
            runs.append(("merge", level))
        runs.extend([("block", inner)] * self.middle)
        for level in reversed(range(inner)):
            runs.append(("spread", level))
            runs.extend([("block", level)] * self.decoder[level])
        return tuple(runs)

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        layers = [level for _, level in self.runs]
        return tuple((layers.count(level), width) for level, width in enumerate(self.widths))

    # What growth asks for.

    @property
    def executed(self) -> tuple[int | None, ...]:
        number = count()
        return tuple(next(number) if kind == "block" else None for kind, _ in self.runs)

    @property
    def block_places(self) -> tuple[str, ...]:
        return tuple(f"the {side} of level {level}" for side, level in self._places)

    @property
    def block_levels(self) -> tuple[int, ...]:
        return tuple(level for _, level in self._places)

    @property
    def block_widths(self) -> tuple[int, ...]:
        return tuple(self.widths[level] for level in self.block_levels)

    def remade(self, sources: Sequence[int]) -> dict[str, Any]:
        """As many blocks in each place as are made from its own."""
        depth = Counter(self._places[source] for source in sources)
        outer = range(len(self.strides))
        return {
            "encoder": tuple(depth["encoder", level] for level in outer),
            "middle": depth["middle", len(self.strides)],
            "decoder": tuple(depth["decoder", level] for level in outer),
            "n_layer": len(sources) + 2 * len(self.strides),
        }

    def waiting(self, step: int) -> tuple[str, ...]:
        """What coarser levels add begins as zero, so each is a step later than the one that it adds to."""
        if step >= len(self.strides):
            return ()
        coarse = (f"blocks.{block}.*" for block, level in enumerate(self.block_levels) if level)
        return (*coarse, "merges.*", "spreads.*", "reads.*.norm.*")

    @property
    def _places(self) -> tuple[tuple[str, int], ...]:
        """Each block's side and level, in the order of execution."""
        outer = range(len(self.strides))
        sides = [("encoder", level) for level in outer for _ in range(self.encoder[level])]
        sides += [("middle", len(self.strides))] * self.middle
        return (*sides, *(("decoder", level) for level in reversed(outer) for _ in range(self.decoder[level])))

    @property
    def any_length(self) -> bool:
        return True  # its positions are rotary on every level

    def problems(self) -> Iterator[tuple[str, str]]:
        inner = len(self.strides)
        wrong_lengths = [
            (key, f"{len(value)} given; with {inner} strides {needed} are needed, {what}")
            for key, value, needed, what in (
                ("widths", self.widths, inner + 1, "one for each level"),
                ("encoder", self.encoder, inner, "one for each level but the innermost"),
                ("decoder", self.decoder, inner, "one for each level but the innermost"),
                ("taps", self.taps, inner, "one for each stride"),
                ("windows", self.windows, inner + 1, "one for each level"),
            )
            if value is not None and len(value) != needed
        ]
        yield from wrong_lengths
        unit = 2 * self.n_head  # rotary heads turn their channels in pairs
        for level, width in enumerate(self.widths):
            if width % unit:
                below = width // unit * unit
                cure = f"take {below} or {below + unit}" if below else f"take {unit}"
                yield "widths", f"level {level}, {width} wide: no multiple of 2 · model.n_head = {unit}; {cure}"
        if self.taps is not None and not wrong_lengths:
            for level, (taps, stride) in enumerate(zip(self.taps, self.strides, strict=True)):
                if taps % stride:
                    above = -(-taps // stride) * stride
                    yield "taps", f"{taps} from level {level} on: no multiple of its stride {stride}; take {above}"
        if self.read_out is not None:
            missing = [level for level in self.read_out if level > inner]
            if not self.read_out or len(set(self.read_out)) < len(self.read_out):
                yield "read_out", "name each level that is read once, at least one"
            elif missing:
                yield "read_out", f"no level {missing[0]}; with {inner} strides there are 0 to {inner}"
        layers = sum(self.encoder) + self.middle + sum(self.decoder) + 2 * len(self.encoder)
        if not layers and not wrong_lengths:
            yield "middle", "without strides these are all the blocks; take at least 1"
        elif self.n_layer != layers and not wrong_lengths:
            yield "n_layer", f"the depths give {layers} attention layers; take that, or leave it out"
        if not wrong_lengths:
            yield from super().problems()

    def remarks(self) -> Iterator[str]:
        """What is allowed, but hardly meant."""
        if self.context <= self.spans[-1] and self.strides:
            yield (
                f"model.context = {self.context}: not longer than one product of the strides, {self.spans[-1]}, so the "
                f"innermost level has one vector, of the first token; take a longer context, or fewer strides"
            )
