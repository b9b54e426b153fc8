"""Growing without training: from a checkpoint to the folder of another run, in one process and without an engine.

    checkpoint = find_checkpoint(Path("runs/small"))            also a finished run of the plain GPT-2
    plan = plan_growth(checkpoint, "zero_init", factor=2)       pure data: to read, to write down, to apply elsewhere
    grow(checkpoint, plan, Path("runs/deep"))

    runs/.deep.growing/    tensors ─▶ both models asked, every tensor compared ─▶ receipt ─▶ COMPLETE
    runs/deep/             the same folder, once all of it is there and right

The folder gets its name last: so what a kill leaves is never taken for a run, and the same command removes it. Files
are linked where nothing changes and tensors made one by one; the models asked are the mapped files themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsllm.config import LoRAConfig
from dsllm.data.files import write_atomically
from dsllm.errors import CheckpointError, ConfigError
from dsllm.growth.grow import Growing
from dsllm.growth.merge import detach_plan, merge_plan
from dsllm.growth.parts import resolve
from dsllm.growth.plan import GrowthPlan, Names, OptimizerState, as_growable, check_settled, make_plan, section_of
from dsllm.models.growable import GrowableConfig
from dsllm.registry import OPERATORS
from dsllm.section import raise_problems
from dsllm.store import TensorStore
from dsllm.training.checkpoints import Checkpoint, Snapshot, checkpoint_name, complete
from dsllm.training.growth_state import FOLDER
from dsllm.training.monitor import Monitor
from dsllm.training.new_folder import check_free, prepared
from dsllm.training.offline_receipt import OfflineReceipt, samples_of, verify
from dsllm.training.receipt import timed
from dsllm.training.run_folder import write_config

MERGE, DETACH = "merge", "detach"
"""Beside the operators: adapters, mixtures and finished gates become plain weights."""


# Plans.


def plan_growth(
    checkpoint: Checkpoint,
    operator: Any,
    factor: int | None = None,
    *,
    lora: LoRAConfig | None = None,
    optimizer_state: OptimizerState = "copy",
) -> GrowthPlan:
    """The plan of a growth event of `checkpoint`; its model is one that can grow, or the plain GPT-2.

    Args:
        operator: a name, a mapping with `name` and options, `merge`, or `detach`, which drops live adapters.
        factor: by how much blocks multiply, 2 if left out; merge and detach take none.
        lora: with it the grown model's blocks are frozen under fresh adapters.
        optimizer_state: Adam's moments of copies, as `growth.optimizer_state`.

    Raises:
        ConfigError: the operator, its options, the factor or the adapters do not fit the model.
        CheckpointError: live adapters, or nothing to merge or detach.
    """
    model, identity, step = _section(checkpoint), checkpoint.store().digest(), checkpoint.progress.step
    if operator in (MERGE, DETACH):
        if factor is not None or lora is not None:
            raise ConfigError(
                f"{operator} takes no factor and no adapters: it leaves plain blocks; grow them afterwards"
            )
        with _named(checkpoint.path):
            if operator == DETACH:
                return detach_plan(model, identity, optimizer_state)
            return merge_plan(model, identity, optimizer_state, step)
    chosen, options, problems = resolve(OPERATORS, operator, "operator")
    raise_problems(problems)
    assert chosen is not None
    if lora is not None and not chosen.takes_adapters:
        raise ConfigError(f"operator = {chosen.name}: takes no adapters, so it cannot diverge; leave that out")
    with _named(checkpoint.path):
        check_settled(model)
        growth = chosen(model, 2 if factor is None else factor, **options)
        return make_plan(growth, model, identity, optimizer_state, lora, step)


def read_plan(path: Path, checkpoint: Checkpoint) -> GrowthPlan:
    """A plan that was written down for this checkpoint; raises `CheckpointError` if it is for another, or changed."""
    with _named(path):
        try:
            plan = GrowthPlan.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot be read ({error}); name a file written by --save_plan") from None
        plan.check_source(checkpoint.store().digest())
        if section_of(plan.model_before) != _section(checkpoint):
            raise CheckpointError(f"not made for the model of {checkpoint.path}; make a plan for this")
        return plan


def write_plan(plan: GrowthPlan, path: Path) -> None:
    """Write a plan down for `read_plan`; raises `DataError` if that cannot be done."""
    write_atomically(path, plan.to_json().encode())


def growing_of(checkpoint: Checkpoint, plan: GrowthPlan) -> Growing:
    """The plan and the checkpoint together; raises `UserError` if they do not fit, before any tensor is read."""
    section = section_of(plan.model_after)
    if list(plan.tensors) != list(Names.of(section).shapes):
        raise CheckpointError("a growth plan whose tensors are not those of its model; make it anew")
    return Growing(checkpoint.store(), plan, section, checkpoint.config().train.seed)


# Growing.


def grow(
    checkpoint: Checkpoint, plan: GrowthPlan, out: Path, probe_samples: int = 8, name: str | None = None
) -> OfflineReceipt:
    """Make `out` the folder of a run that begins with the grown model, at the step of `checkpoint`.

    The receipt says `name` for where that comes from if the checkpoint is on its way out, as an imported one is.

    Raises `UserError`, and leaves nothing, if plan and checkpoint do not fit, a tensor of the checkpoint is damaged,
    `out` is not free or cannot be written, or what came of it is not what was promised.
    """
    check_free(out)
    growing = growing_of(checkpoint, plan)
    config = checkpoint.config()
    grown_config = config.model_copy(update={"run_dir": out, "model": growing.model.config, "growth": None})
    samples = samples_of(checkpoint, probe_samples)
    seconds: dict[str, float] = {}
    with timed(seconds, "source"):
        growing.source.verify(growing.source.entries.values())
    with prepared(out, "growing") as folder:
        path = folder / "checkpoints" / checkpoint_name(checkpoint.progress.step)
        with timed(seconds, "grow"):
            path.mkdir(parents=True)
            store = TensorStore.of(path, growing.write(path), growing.aliases, growing.steps())
        receipt = verify(checkpoint, growing, store, samples, seconds)
        receipt.source = name or receipt.source
        if receipt.problems:
            raise CheckpointError(f"{out}: not what was promised, so it is not kept:\n{receipt.words()}")
        written = folder / FOLDER / path.name
        written.mkdir(parents=True)
        write_plan(plan, written / "plan.json")
        receipt.write(written / "receipt.json")
        write_config(folder, grown_config)
        here = config.monitor.model_copy(update={"wandb": None})  # it shows runs, and this is the beginning of one
        monitor = Monitor(folder, here, checkpoint.progress, config.train.steps)
        monitor.growth(checkpoint.progress, {"checkpoint": path.name, **receipt.record()}, receipt.words())
        monitor.close()
        state = {**checkpoint.state, "guard": {}}
        if config.growth is not None:
            state["trainer"] = {}
        asked = growing.model.config.model_dump(mode="json")
        complete(store, Snapshot(checkpoint.progress, checkpoint.origin, grown_config, asked, state))
    return receipt


# Words.


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within it the message of a `CheckpointError` begins with the path."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _section(checkpoint: Checkpoint) -> GrowableConfig:
    return as_growable(checkpoint.config().model)
