"""What a grown model is: each operator a small function from the model's section and a factor to a `Growth`.

           3 blocks, factor 2         blocks  executed     function preserved
    untie      A A B B C C      →  A A'B B'C C'   same     exactly (uses 2 → 1)
    interpose  A B C            →  A A'B B'C C'   double   no
    stack      A B C            →  A B C A'B'C'   double   no
    middle     A B C            →  A B B'B"B‴C    double   no
    zero_init  A B C            →  A 0 B 0 C 0    double   exactly
    dropin     A B C            →  A(A)B(B)C(C)   double   exactly, and then the gates open
    mixture    A B C            →  AABBCC of mixed templates   double   no
    lateral    A B C            →  A B C beside a b c   same    exactly

A model of several levels is one row of blocks, too, in the order of their use. What copies each block into the place
behind it leaves every level in its order, and with `levels` only the blocks of these are copied:

    interpose, levels [1]       A0 B1 C2 D1 E0  →  A0 B1 B'1 C2 D1 D'1 E0

A new one takes five lines; this makes it known as `mirror`, with the option `twice`:

    @operator("mirror", preserves_function=False)
    def mirror(model: GrowableConfig, factor: int, *, twice: bool = False) -> Growth:
        \"\"\"ABC → ABCCBA.\"\"\"
        blocks = range(model.distinct_blocks)
        return deepened(model, [*blocks, *reversed(blocks)])
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import gcd
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from dsllm.errors import ConfigError
from dsllm.growth.parts import Part
from dsllm.growth.plan import Growth, changed, check_places, deepened
from dsllm.growth.transforms import Rule
from dsllm.models.growable import PARTS, GrowableConfig
from dsllm.models.progressive import ProgressiveConfig
from dsllm.registry import OPERATORS

Levels = list[NonNegativeInt] | None


class Operator(Part):
    """A way to grow. `operator(model, factor, **options)` gives the `Growth`, or raises `ConfigError` if none fits."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Growth],
        *,
        preserves_function: bool,
        takes_adapters: bool = True,
        needs: str | None = None,
    ):
        super().__init__(name, function)
        self.preserves_function = preserves_function
        self.takes_adapters = takes_adapters
        self.needs = needs

    def __call__(self, model: GrowableConfig, factor: int, **options: Any) -> Growth:
        if factor < 2:
            raise ConfigError(f"growth.factor = {factor}: nothing grows by it; take 2 or more")
        if self.needs is not None and self.needs not in type(model).model_fields:
            raise ConfigError(
                f"growth.operator = {self.name}: needs model.{self.needs}, which model.name = {model.name} does not "
                f"have; take interpose, zero_init, dropin or random"
            )
        growth: Growth = self.function(model, factor, **options)
        growth = replace(growth, operator=self.name, preserves_function=self.preserves_function)
        check_places(growth, model)
        return growth


def operator(
    name: str, *, preserves_function: bool, takes_adapters: bool = True, needs: str | None = None
) -> Callable[[Callable[..., Growth]], Operator]:
    """Decorator: a function of (model, factor) with keyword-only options becomes an operator known by `name`.

    `preserves_function`: the logits at the switch stay bit for bit the same; a run in which they do not ends.
    `takes_adapters`: the grown model's blocks can be frozen under LoRA, so that a stage may begin with diverging.
    `needs`: a field of the model's section that it works on, where not every model that grows has it.
    """

    def register(function: Callable[..., Growth]) -> Operator:
        made = Operator(
            name, function, preserves_function=preserves_function, takes_adapters=takes_adapters, needs=needs
        )
        return OPERATORS.register(name)(made)

    return register


@operator("untie", preserves_function=True, needs="uses")
def untie(model: ProgressiveConfig, factor: int) -> Growth:
    """Each block becomes `factor` copies that share its uses: 3 blocks × 4 → 6 × 2; the depth stays (2110.03848)."""
    common = gcd(*model.block_uses)
    if common % factor:
        divisors = [str(d) for d in range(2, common + 1) if common % d == 0]
        cure = f"take {' or '.join(divisors)}" if divisors else "start with model.uses above 1, or take interpose"
        raise ConfigError(
            f"growth.factor = {factor}: untie shares the uses of each block among its copies, and it does not divide "
            f"model.uses = {model.uses}; {cure}"
        )
    uses = [uses // factor for uses in model.block_uses for _ in range(factor)]
    sources = tuple(block for block in range(model.distinct_blocks) for _ in range(factor))
    return Growth(changed(model, uses=uses[0] if len(set(uses)) == 1 else uses), sources)


@operator("interpose", preserves_function=False)
def interpose(model: GrowableConfig, factor: int, *, levels: Levels = None) -> Growth:
    """Each block becomes `factor` neighbours: ABC → AABBCC. The origin's duplication; 2510.08008.

    levels: only the blocks of these levels are copied, counted from 0, the outermost; null: all blocks
    """
    return deepened(model, _neighbours(model, factor, levels))


@operator("stack", preserves_function=False)
def stack(model: GrowableConfig, factor: int) -> Growth:
    """The whole stack `factor` times over: ABC → ABCABC. StackBERT; G_stack, 2405.15319."""
    return deepened(model, [*range(model.distinct_blocks)] * factor)


@operator("middle", preserves_function=False)
def middle(model: GrowableConfig, factor: int, *, group: PositiveInt | None = None) -> Growth:
    """Copies of the middle blocks are inserted after them: ABCDEF → ABCDCDEF with a group of 2. MIDAS, 2409.19044.

    group: blocks in the middle group, of which there are `factor` in a row afterwards; null: at most half of the
        blocks, repeated until there are `factor` times as many as before
    """
    n = model.distinct_blocks
    if group is None:
        size = max(d for d in range(1, max(1, n // 2) + 1) if n * (factor - 1) % d == 0)
        repeats = 1 + n * (factor - 1) // size
    else:
        size, repeats = group, factor
    if size > n:
        raise ConfigError(f"growth.operator.group = {size}: the model has {n} distinct blocks; take {n} or less")
    start = (n - size) // 2
    end = start + size
    return deepened(model, [*range(start), *[*range(start, end)] * repeats, *range(end, n)])


@operator("zero_init", preserves_function=True)
def zero_init(model: GrowableConfig, factor: int, *, levels: Levels = None) -> Growth:
    """After each block `factor` − 1 copies that add nothing yet: what they write is zero. LLaMA Pro, 2401.02415.

    Under frozen weights such a copy can only ever become what its adapters of low rank make of it.

    levels: only the blocks of these levels are copied, counted from 0, the outermost; null: all blocks
    """
    sources = _neighbours(model, factor, levels)
    copies = _copies(sources)
    silent = {"attention.out.*": "zero", "mlp.down.*": "zero"}
    # Behind a projection that is zero nothing has a gradient; the projection itself has.
    waiting = ("norm_1", "attention.qkv", "norm_2", "mlp.up")
    return deepened(
        model,
        sources,
        transforms=dict.fromkeys(copies, silent),
        dead_at_start=tuple(f"blocks.{block}.{part}.*" for block in copies for part in waiting),
    )


@operator("random", preserves_function=False, takes_adapters=False)
def random(model: GrowableConfig, factor: int, *, levels: Levels = None) -> Growth:
    """Behind each block `factor` − 1 new ones, as at the beginning of a run: what copies are held against (2405.15319).

    levels: only blocks of these levels get new ones behind them, counted from 0, the outermost; null: all blocks
    """
    sources = _neighbours(model, factor, levels)
    new = set(_copies(sources))
    grown = deepened(model, sources)
    return replace(grown, sources=tuple(None if block in new else source for block, source in enumerate(sources)))


@operator("dropin", preserves_function=True)
def dropin(
    model: GrowableConfig,
    factor: int,
    *,
    steps: PositiveInt = 500,
    kind: Literal["scalar", "channel"] = "scalar",
    seed: NonNegativeInt = 0,
    levels: Levels = None,
) -> Growth:
    """After each block `factor` − 1 copies, bypassed, behind gates that open bit by bit. Gradual DropIn, 1511.06951.

    steps: optimizer steps until the gates are open
    kind: a half-open gate lets half of every channel through, or half of the channels, drawn anew at each step
    seed: of the channels drawn
    levels: only the blocks of these levels are copied, counted from 0, the outermost; null: all blocks
    """
    sources = _neighbours(model, factor, levels)
    gated = _copies(sources)
    return deepened(
        model,
        sources,
        changes={"gate": {"blocks": gated, "steps": steps, "kind": kind, "seed": seed}},
        # At the first step a scalar gate is open by a little; of channels it may be that none is.
        dead_at_start=tuple(f"blocks.{block}.*" for block in gated) if kind == "channel" else (),
    )


@operator("mixture", preserves_function=False, takes_adapters=False, needs="mixture")
def mixture(
    model: ProgressiveConfig,
    factor: int,
    *,
    coefficients: Literal["copy", "orthogonal", "random"] = "copy",
    seed: NonNegativeInt = 0,
) -> Growth:
    """All blocks are mixed from the old ones' matrices, shared as templates, each `factor` times. 2311.04251.

    coefficients: those of the new blocks: copies of the old ones', orthogonal to each other, or random
    seed: of the orthogonal and random ones
    """
    n = model.distinct_blocks
    rules: dict[str, Rule] = {}
    for part in PARTS:
        for k in range(n):
            rules[f"blocks.0.{part}.template_{k}"] = Rule((f"blocks.{k}.{part}.weight",))
        for block in range(n * factor):
            old, copy = divmod(block, factor)
            key = f"{seed} {part} {copy}"
            vector = {
                "copy": Rule((), "one_hot", {"size": n, "index": old}),
                "orthogonal": Rule((), "orthogonal", {"size": n, "index": old, "key": key}),
                "random": Rule((), "random_direction", {"size": n, "key": f"{key} {old}"}),
            }
            rules[f"blocks.{block}.{part}.coefficients"] = vector[coefficients if copy else "copy"]
    return deepened(model, _neighbours(model, factor), changes={"mixture": {"templates": n}}, tensors=rules)


@operator("lateral", preserves_function=True, takes_adapters=False, needs="lateral")
def lateral(
    model: ProgressiveConfig,
    factor: int,
    *,
    rank: PositiveInt | None = None,
    freeze: bool = True,
) -> Growth:
    """A new column, `factor` times narrower, that reads the frozen model's states at each depth. 1606.04671.

    rank: of the adapters that carry the states over; null: an eighth of the new column's width
    freeze: the old column rests
    """
    heads = max(1, model.n_head // factor)
    width = heads * (model.n_embd // model.n_head)
    column = {"n_embd": width, "n_head": heads, "rank": rank or max(1, width // 8), "freeze": freeze}
    return Growth(
        changed(model, lateral=column),
        sources=tuple(range(model.distinct_blocks)),
        # The gate beta is zero: it alone has a gradient.
        dead_at_start=("column.embed.*", "column.blocks.*", "column.out.projection.*"),
    )


def _neighbours(model: GrowableConfig, factor: int, levels: Levels = None) -> list[int]:
    """(0, 0, 1, 1, 2, 2) for three blocks and the factor 2; (0, 1, 1, 2) if block 1 alone is of the levels."""
    known = sorted(set(model.block_levels))
    if not known:
        raise ConfigError(f"growth.operator: model.name = {model.name} has no blocks to copy here; give it some")
    wrong = sorted(set(levels or ()).difference(known))
    if wrong or levels == []:
        what = f"no blocks on level {wrong[0]}" if wrong else "names no level"
        there = ", ".join(map(str, known))
        raise ConfigError(f"growth.operator.levels = {levels}: {what}; take some of {there}, or null for all")
    chosen = known if levels is None else levels
    return [block for block, level in enumerate(model.block_levels) for _ in range(factor if level in chosen else 1)]


def _copies(sources: Sequence[int]) -> list[int]:
    """Target blocks that come right behind another made from the same block."""
    return [block for block in range(1, len(sources)) if sources[block] == sources[block - 1]]
