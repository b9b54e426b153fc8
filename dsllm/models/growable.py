"""What every model that grows has: blocks that growth copies, adapters on them, gates before them.

    runs of a forward pass       0  1  2  3  4  5      each one call of `run_block`
    executed                     0  0  1  1  2  2      three blocks, each used twice
    executed                     0  –  1  2  –  3      four blocks, and two runs that are no blocks

Growth knows a model by its section alone: which run is which block, on which level each block lies, and what the
section becomes when its blocks are others' copies. The rest of a model, whatever it is, is carried over unchanged, and
frozen only where `lora.freeze` is `all`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import NonNegativeInt
from torch import Tensor, nn

from dsllm.config import LoRAConfig, ModelConfig
from dsllm.models.gates import GateConfig, Gates
from dsllm.models.language_model import LanguageModel
from dsllm.models.layers import Block
from dsllm.models.lora import LoRALinear, is_adapter

PARTS = {"attention.qkv": 3, "attention.out": 1, "mlp.up": 1, "mlp.down": 1}
"""A block's linear maps by name, and how many maps each of them fuses."""


class GrowableConfig(ModelConfig):
    """The `model` section of a model that can grow; a subclass says the facts below."""

    lora: LoRAConfig | None = None
    """Adapters on frozen linear maps."""
    bases: list[NonNegativeInt] | None = None
    """With lora: a number for each distinct block; blocks of equal numbers keep their frozen tensors as one."""
    gate: GateConfig | None = None
    """Blocks that come in gradually."""

    temporary: ClassVar[Mapping[str, str]] = {"lora": "live adapters", "gate": "gates"}
    """Fields, and what they are in words, that a merge makes plain blocks of: no growth event carries them along."""
    last: ClassVar[Mapping[str, str]] = {}
    """Fields, and what they are in words, of what no later growth can handle."""

    # What a subclass says.

    @property
    def executed(self) -> tuple[int | None, ...]:
        """The distinct block of each run, in the order of execution; None for a run that is no block."""
        raise NotImplementedError

    @property
    def block_places(self) -> tuple[str, ...]:
        """Where each distinct block stands, in words: a copy stays where the block is that it is made from."""
        raise NotImplementedError

    @property
    def block_levels(self) -> tuple[int, ...]:
        """The level of each distinct block, counted as `LanguageModel.spans` counts them."""
        raise NotImplementedError

    @property
    def block_widths(self) -> tuple[int, ...]:
        """The width of the stream through each distinct block."""
        raise NotImplementedError

    def remade(self, sources: Sequence[int]) -> dict[str, Any]:
        """The fields that change, with their values, when block j is one as the present block sources[j] is."""
        raise NotImplementedError

    def waiting(self, step: int) -> tuple[str, ...]:
        """Patterns of parameters that may have no gradient yet after `step` steps, behind what begins as zero."""
        return ()

    # What follows from it.

    @property
    def distinct_blocks(self) -> int:
        """Blocks with parameters of their own."""
        return len(self.block_levels)

    @property
    def unsettled(self) -> list[str]:
        """Fields of what has to be merged before the model can grow."""
        return [name for name in self.temporary if getattr(self, name) is not None]

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.lora is not None:
            narrowest = min(self.block_widths, default=self.lora.rank)
            if self.lora.rank > narrowest:
                cure = max(1, narrowest // 4)
                yield "lora.rank", f"above the width of the narrowest block, {narrowest}; take {cure}"
        if self.bases is not None:
            yield from self._base_problems(self.bases)
        n = self.distinct_blocks if self.gate is not None else 0
        if self.gate is not None and max(self.gate.blocks, default=0) >= n:
            yield "gate.blocks", f"the model has {n} distinct blocks; name some of 0 to {n - 1}"

    def _base_problems(self, bases: Sequence[int]) -> Iterator[tuple[str, str]]:
        if self.lora is None:
            yield "bases", "without model.lora nothing is frozen that could be shared; leave it out"
        elif len(bases) != self.distinct_blocks:
            yield "bases", f"{len(bases)} numbers for {self.distinct_blocks} distinct blocks; give one for each"
        else:
            widths: dict[int, int] = {}
            for base, width in zip(bases, self.block_widths, strict=True):
                if widths.setdefault(base, width) != width:
                    yield "bases", f"blocks {widths[base]} and {width} wide share {base}; give them different numbers"


class Growable(LanguageModel):
    """Base of models that grow. What trains follows from the section.

    A subclass puts its blocks through `adapted` when it makes them, and calls `rest` when all its parameters are there.
    """

    Config: ClassVar[type[GrowableConfig]] = GrowableConfig
    config: GrowableConfig
    blocks: nn.ModuleList
    """The distinct blocks, in the order of their use."""

    def __init__(self, config: GrowableConfig):
        super().__init__(config)
        self.gates = None if config.gate is None else Gates(config.gate, config.executed, config.block_widths)

    def outside_flops_per_token(self, context: int) -> int:
        """The part of `forward_flops_per_token` that multiplies by weights which lie in no block, as the head's."""
        raise NotImplementedError

    def adapted(self, block: Block) -> Block:
        """The block, with adapters on those of its linear maps that are to have them."""
        lora = self.config.lora
        for name, parts in PARTS.items() if lora is not None else ():
            assert lora is not None
            if lora.freeze != "attention" or name.startswith("attention"):
                linear = block.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                size = linear.in_features, linear.out_features
                block.set_submodule(name, LoRALinear(*size, rank=lora.rank, scale=lora.scale, parts=parts))
        return block

    def rest(self) -> None:
        """Freeze what rests beside the blocks' adapted maps, and let blocks of one base hold it as one.

        At ZeRO-3 a rank then has one part of each frozen tensor, too.
        """
        if self.config.lora is not None and self.config.lora.freeze == "all":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(is_adapter(name))
        first: dict[int, nn.Module] = {}
        for block, base in zip(self.blocks, self.config.bases or (), strict=self.config.bases is not None):
            for name, parameter in first.setdefault(base, block).named_parameters():
                if not parameter.requires_grad:
                    module, _, attribute = name.rpartition(".")
                    setattr(block.get_submodule(module), attribute, parameter)

    def run_block(self, index: int, block: nn.Module, *inputs: Any) -> Tensor:
        out = super().run_block(index, block, *inputs)
        return out if self.gates is None else self.gates.mix(index, inputs[0], out, self.training)

    def set_step(self, step: int) -> None:
        """Open the gates as far as they are at an optimizer step. Until then they are as at the gate's start."""
        if self.gates is not None:
            self.gates.set_step(step)

    # Accounts.

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """As every model's, and two more for the adapters: `lr_scale` times the run's learning rate, and no decay."""
        groups = super().parameter_groups(weight_decay)
        lora = self.config.lora
        if lora is None:
            return groups
        for kind, lr_scale in (("lora_A", lora.lr_scale_a), ("lora_B", lora.lr_scale_b)):
            params = [parameter for name, parameter in self.named_parameters() if name.endswith(kind)]
            chosen = {id(parameter) for parameter in params}
            for group in groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            groups.append({"name": kind, "params": params, "weight_decay": 0.0, "lr_scale": lr_scale})
        return [group for group in groups if group["params"]]

    def adapter_flops_per_token(self, context: int) -> int:
        """The adapters' part of `forward_flops_per_token`."""
        total = sum(n * m.rank * (m.parts * m.in_features + m.out_features) for m, n in self._adapted_runs(context))
        return 2 * total // context

    def flops_per_token(self, context: int) -> int:
        """Training FLOPs per token: 6 · P + 3 · A where all trains, P the weights used, A the attention forward.

        A frozen matrix has no gradient of its own: with adapters 4 · P_frozen + 6 · (P_rest + P_lora) + 3 · A. (Where
        all else rests the first block needs no gradient of its input; it is counted all the same.)
        """
        resting = 2 * sum(n * m.in_features * m.out_features for m, n in self._adapted_runs(context)) // context
        if self.config.lora is not None and self.config.lora.freeze == "all":
            resting += self.outside_flops_per_token(context)
        return super().flops_per_token(context) - resting

    def _adapted_runs(self, context: int) -> Iterator[tuple[LoRALinear, int]]:
        """Linear maps with adapters, once for each use, and the vectors that come through for `context` tokens."""
        for number in self.config.executed if self.config.lora is not None else ():
            if number is not None:
                vectors = -(-context // self.spans[self.config.block_levels[number]])
                maps = (module for module in self.blocks[number].modules() if isinstance(module, LoRALinear))
                yield from ((module, vectors) for module in maps)
