"""A transformer whose blocks may be used several times in a row, and what growing it needs.

    n_layer 12, uses 4:   block 0 ×4, block 1 ×4, block 2 ×4        3 distinct blocks, 12 executed ones
    n_layer 12, uses 2:   six blocks, two of them made of each of the three: at first the same function
    n_layer 12, uses 1:   GPT-2, with the same parameters by the same names

The whole structure stands in the configuration: with the tensors by name it is the model. Growing makes both anew, a
model that lives is never changed. Beside `uses` a section can ask for adapters on frozen blocks (`lora`), copies of a
frozen block in one piece of memory (`bases`), blocks that come in gradually (`gate`), blocks mixed from shared
templates (`mixture`), or a second column (`lateral`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from dsllm.models.gpt2 import GPT2, GPT2Config
from dsllm.models.growable import PARTS, Growable, GrowableConfig
from dsllm.models.lateral import Column, LateralConfig
from dsllm.models.layers import Block, KVCache
from dsllm.models.lora import initial_lora, is_adapter
from dsllm.models.mixture import MixtureConfig, MixtureLinear, initial_coefficients


class ProgressiveConfig(GPT2Config, GrowableConfig):
    """The `model` section of a run that grows."""

    name: str = "progressive"
    """The model, by its registered name."""
    uses: PositiveInt | list[PositiveInt] = 1
    """How often each block is used in a row: one number for all blocks, or one for each; together n_layer."""
    mixture: MixtureConfig | None = None
    """Blocks whose matrices are linear combinations of shared templates."""
    lateral: LateralConfig | None = None
    """A narrow second column beside the frozen first."""

    temporary: ClassVar[Mapping[str, str]] = {**GrowableConfig.temporary, "mixture": "mixed blocks"}
    last: ClassVar[Mapping[str, str]] = {"lateral": "a second column"}

    @property
    def block_uses(self) -> tuple[int, ...]:
        """How often each distinct block is used, in the order of their use."""
        if isinstance(self.uses, int):
            return (self.uses,) * (self.n_layer // self.uses)
        return tuple(self.uses)

    @property
    def executed(self) -> tuple[int | None, ...]:
        return tuple(block for block, uses in enumerate(self.block_uses) for _ in range(uses))

    @property
    def block_places(self) -> tuple[str, ...]:
        return ("the column",) * len(self.block_uses)

    @property
    def block_levels(self) -> tuple[int, ...]:
        return (0,) * len(self.block_uses)

    @property
    def block_widths(self) -> tuple[int, ...]:
        return (self.n_embd,) * len(self.block_uses)

    def remade(self, sources: Sequence[int]) -> dict[str, Any]:
        """Each block is used as often as the one that it is made as."""
        uses = [self.block_uses[source] for source in sources]
        return {"n_layer": sum(uses), "uses": uses[0] if len(set(uses)) == 1 else uses}

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        executed = sum(self.block_uses)
        if executed != self.n_layer and isinstance(self.uses, int):
            below, above = self.n_layer // self.uses * self.uses, -(-self.n_layer // self.uses) * self.uses
            cure = f"take model.n_layer = {below} or {above}" if below else f"take model.n_layer = {above}"
            yield "uses", f"does not divide model.n_layer = {self.n_layer}; {cure}"
        elif executed != self.n_layer:
            yield "uses", f"adds up to {executed}, but model.n_layer = {self.n_layer}; make them agree"
        alone = [name for name in ("lora", "mixture", "lateral") if getattr(self, name) is not None]
        if len(alone) > 1:
            yield alone[1], f"cannot stand beside model.{alone[0]}; merge that first"
        if self.lateral is not None:
            yield from self._lateral_problems(self.lateral)

    def _lateral_problems(self, lateral: LateralConfig) -> Iterator[tuple[str, str]]:
        unit = lateral.n_head * (2 if self.positions == "rotary" else 1)
        if lateral.n_embd % unit:
            above = -(-lateral.n_embd // unit) * unit
            yield "lateral.n_embd", f"not divisible by {unit}, from model.lateral.n_head; take {above}"
        if lateral.rank > min(lateral.n_embd, self.n_embd):
            yield "lateral.rank", f"above the narrower column's width; take {min(lateral.n_embd, self.n_embd)} or less"


class Progressive(Growable, GPT2):
    """GPT-2 with repeated blocks, and with what `ProgressiveConfig` adds to it. What trains follows from the config."""

    Config: ClassVar[type[ProgressiveConfig]] = ProgressiveConfig
    config: ProgressiveConfig

    def __init__(self, config: ProgressiveConfig):
        super().__init__(config)
        self.column: Column | None = None
        if config.lateral is not None:
            self.requires_grad_(not config.lateral.freeze)
            self.column = Column(config.lateral, config.n_embd, config.n_layer, config.window)
            with torch.no_grad():
                for name, parameter in self.column.named_parameters(prefix="column"):
                    self.initial(name, parameter)
        self.rest()

    def new_blocks(self) -> list[Block]:
        config = self.config
        blocks = [
            self.adapted(Block(config.n_embd, config.n_head, config.window)) for _ in range(config.distinct_blocks)
        ]
        for block in blocks if config.mixture is not None else ():
            assert config.mixture is not None
            for name in PARTS:
                linear = block.get_submodule(name)
                first = None if block is blocks[0] else blocks[0].get_submodule(name)
                assert isinstance(linear, nn.Linear) and (first is None or isinstance(first, MixtureLinear))
                size = linear.in_features, linear.out_features
                block.set_submodule(name, MixtureLinear(*size, config.mixture.templates, first))
        return blocks

    def initial(self, name: str, parameter: Tensor, generator: torch.Generator | None = None) -> None:
        """As GPT-2's; adapters and a second column's gate begin so that they change nothing."""
        if is_adapter(name):
            initial_lora(name, parameter, generator)
        elif name.endswith(".coefficients"):
            initial_coefficients(parameter, generator)
        elif ".template_" in name:
            super().initial(name[: name.rindex(".")] + ".weight", parameter, generator)
        else:
            super().initial(name, parameter, generator)

    def executed_blocks(self) -> Sequence[Block]:
        """Blocks in the order of their use, each as often as it is used."""
        pairs = zip(self.blocks, self.config.block_uses, strict=True)
        return tuple(block for block, uses in pairs for _ in range(uses))  # type: ignore[misc]

    @property
    def n_blocks(self) -> int:
        return self.config.n_layer * (1 if self.config.lateral is None else 2)

    def new_cache(self) -> KVCache:
        return KVCache(self.n_blocks, self.config.context, self.config.window)

    def through_blocks(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """The residual stream x (B, T, C) after all blocks, and with what a second column adds to it."""
        lateral, column = self.config.lateral, self.column
        if lateral is None or column is None:
            return super().through_blocks(x, positions, mask, cache)
        layers: Sequence[Any] = [None] * self.n_blocks if cache is None else cache.layers
        rotation = self.rotation(positions, self.config.n_embd // self.config.n_head, x.dtype)
        narrow = self.rotation(positions, lateral.n_embd // lateral.n_head, x.dtype)
        z = column.embed(x).to(x.dtype)  # (B, T, c); under autocast this stream stays fp32, too
        pairs = zip(self.executed_blocks(), column.blocks, strict=True)
        for index, (block, beside) in enumerate(pairs):
            second = self.config.n_layer + index
            z = self.run_block(second, beside, z, x, narrow, mask, layers[second])
            x = self.run_block(index, block, x, rotation, mask, layers[index])
        out: Tensor = x + column.out(z)
        return out

    # Accounts.

    def forward_flops_per_token(self, context: int) -> int:
        """GPT-2's for `n_layer` executed layers, 2 · P + A, and the products of adapters and of a second column.

        A block counts once per use, a gated one whole. Templates are mixed once a pass, not per token: not counted.
        """
        whole = super().forward_flops_per_token(context) + self.adapter_flops_per_token(context)
        return whole + self._column_flops(context)

    def outside_flops_per_token(self, context: int) -> int:
        return 2 * self.vocab_size * self.config.n_embd

    def flops_per_token(self, context: int) -> int:
        """As every growing model's; but beside a new column a frozen first one runs forward only, except for the head.

        2 · P + A + 2 · P_head, and the column's 6 · P + 3 · A.
        """
        lateral = self.config.lateral
        if lateral is None or not lateral.freeze:
            return super().flops_per_token(context)
        column = self._column_flops(context)
        first = self.forward_flops_per_token(context) - column
        embedding = 2 * self.config.n_embd * lateral.n_embd  # it rests, so nothing goes back through the column's entry
        return first + self.outside_flops_per_token(context) + 3 * column - embedding

    def _column_flops(self, context: int) -> int:
        c, lateral = self.config, self.config.lateral
        if lateral is None:
            return 0
        adapter = lateral.rank * (c.n_embd + lateral.n_embd)
        seen = min(context, c.window or context)
        per_layer = 2 * (12 * lateral.n_embd**2 + adapter) + 4 * lateral.n_embd * seen
        return c.n_layer * per_layer + 2 * 2 * c.n_embd * lateral.n_embd  # and its two ends
