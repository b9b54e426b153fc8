"""How a run's model is replaced by another between two steps, and how that is verified; what and when is decided above.

    carry_out:  probe the engine ─▶ plan.json ─▶ every rank writes its share of step_00000050.01 ─▶ Reinitialise
    verify:     probe again ─▶ compare; tensors against the plan; the optimizer's groups ─▶ gradients ─▶ receipt.json

The two halves run in two lives of the process, with nothing between them but the run's folder.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dsllm.config import ModelConfig
from dsllm.data.batches import evaluation_batches
from dsllm.data.files import os_errors_named
from dsllm.errors import CheckpointError, Reinitialise
from dsllm.growth.grow import Growing
from dsllm.growth.plan import GrowthPlan
from dsllm.registry import MODELS
from dsllm.store import Entry, TensorStore
from dsllm.training.checkpoints import Checkpoint, Snapshot, checkpoint_name, complete_checkpoints
from dsllm.training.growth_state import Event, cannot_be_read, probe_path, this_process
from dsllm.training.probe import Probe, conditions_of, take_probe
from dsllm.training.progress import Progress
from dsllm.training.receipt import Receipt, check_gradients, check_groups, check_tensors, frozen_digest, timed
from dsllm.training.trainer import BaseTrainer


@dataclass(frozen=True)
class Position:
    """A complete checkpoint of the run to grow from."""

    store: TensorStore
    identity: str
    """Its weights' digest, by which a plan knows it."""
    model: ModelConfig
    progress: Progress
    state: dict[str, Any]
    """The trainer's own."""
    scaler: dict[str, float]
    """Of fp16's loss."""

    @property
    def name(self) -> str:
        return self.store.folder.name


class GrowingTrainer(BaseTrainer):
    """A trainer that can go on with a grown model: `carry_out` a plan, and what comes of it is verified."""

    probe_samples = 8
    """Held-out samples that the model is compared on, before and after."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._receipt: Receipt | None = None
        self._growing: Growing | None = None
        self._event = self.world.from_main(self._event_before) if self.base is not None else None

    def model_section(self, checkpoint: Checkpoint) -> ModelConfig:
        return checkpoint.config().model

    def verified(self, receipt: Receipt) -> None:
        """Called on every rank when an event is verified, or was so before a kill; gradients are looked at later."""

    def comes_back(self) -> bool:
        """Whether other events from the same checkpoint are still to come."""
        return False

    # The first half.

    def here(self) -> Position:
        """The newest checkpoint, if it is of this step; else one is written."""
        if self.base is None or not self.base.folder.name.startswith(checkpoint_name(self.progress.step)):
            begun = time.perf_counter()
            self.save()
            self._saved_in = time.perf_counter() - begun
        assert self.base is not None
        state = self.snapshot().state
        return Position(
            self.base, self.base.digest(), self.model_config, self.progress, state["trainer"], state["scaler"]
        )

    def position(self, name: str) -> Position:
        """An earlier checkpoint of the run, by its name."""
        checkpoint = self.world.together(lambda: self.checkpoints.whole(self.checkpoints.folder / name))
        store = checkpoint.store()
        state = checkpoint.state
        model = checkpoint.config().model
        return Position(store, store.digest(), model, checkpoint.progress, state["trainer"], state["scaler"])

    def carry_out(self, position: Position, plan: GrowthPlan, state: dict[str, Any]) -> NoReturn:
        """Write the checkpoint that the plan makes of `position`, with the trainer's `state`, and go on from it.

        Raises `Reinitialise` when it is complete, or `Stopped` if a signal came meanwhile.
        """
        if self._receipt is not None:
            self._conclude(self._receipt, trained=False)
        event = Event(self._next_name(position), position.name, time.time() - self._saved_in, this_process())
        event.seconds["save"] = self._saved_in
        self._saved_in = 0.0
        with timed(event.seconds, "probe"):
            self._probe_before(position)
        model = MODELS[plan.model_after["name"]].Config(**plan.model_after)
        growing = Growing(position.store, plan, model, self.config.train.seed)
        self.world.from_main(lambda: event.begin(self.run_dir, plan))
        path = self.checkpoints.folder / event.name
        here = self.snapshot()
        snapshot = Snapshot(
            progress=position.progress,
            origin=here.origin,
            config=here.config.model_copy(update={"model": model}),
            asked=here.asked,
            state={"trainer": state, "scaler": position.scaler},
        )

        def write() -> list[Entry]:
            return growing.write(path, self.world.rank, self.world.size)

        with timed(event.seconds, "grow"):
            self.checkpoints.write(path, write, growing.aliases, growing.steps(), snapshot)
        self.world.from_main(lambda: event.write(self.run_dir))
        self.signals.hold()
        if self.signals.agreed():
            self._stopped(self.signals.agreed())
        if self.monitor is not None:
            self.monitor.close()
        self.loader.close()
        self.lock.release()
        raise Reinitialise

    def _next_name(self, position: Position) -> str:
        """One more than the newest event of the step; races come back to an older one."""
        step = position.progress.step
        names = self.world.from_main(lambda: [path.name for path in complete_checkpoints(self.run_dir)])
        newest = max(name for name in names if name.startswith(checkpoint_name(step)))
        return checkpoint_name(step, int(newest.partition(".")[2] or 0) + 1)

    # The second half.

    def before_step(self) -> None:
        if self._event is not None:
            event, self._event = self._event, None
            known = self.world.from_main(lambda: self._receipt_of(event))
            if known is None:
                self._verify(event)
            else:  # killed since then, before any checkpoint of the grown model could know of it
                self.verified(known)
                self.world.from_main(lambda: self._forget_probe(event))

    def _receipt_of(self, event: Event) -> Receipt | None:
        with cannot_be_read(event.receipt(self.run_dir), event.name):
            return Receipt.read(event.receipt(self.run_dir))

    def before_update(self) -> None:
        if self._receipt is not None:
            self._conclude(self._receipt, trained=True)

    def _verify(self, event: Event) -> None:
        """Compare the engine with what was promised.

        Raises `CheckpointError` if a promise was not kept; the checkpoint before the event is whole.
        """
        if self.world.is_main and event.process == this_process():
            event.seconds["restart"] = time.time() - event.started - sum(event.seconds.values())
        plan = self.world.together(lambda: event.plan(self.run_dir))
        before = self.world.together(lambda: Probe.load(probe_path(self.run_dir, event.source)))
        with timed(event.seconds, "verify"):
            after = self._probe(before.samples, before.micro_batch_size)
            source = self.world.together(lambda: TensorStore.read(self.checkpoints.folder / event.source))
            assert self.base is not None
            growing = self.world.together(lambda: Growing(source, plan, self.model_config, self.config.train.seed))
            copied, new, problems = check_tensors(self.tensors, growing, self.base, self.world)
            problems += check_groups(self.tensors)
        frozen, written = frozen_digest(self.tensors, self.base), self.base.bytes_written

        def receipt_of() -> Receipt:
            return Receipt.of(
                plan,
                self.progress.step,
                before,
                after,
                problems,
                copied=copied,
                new=new,
                frozen_sha256=frozen,
                parameters=self.parameters,
                trainable_parameters=self.trainable_parameters,
                seconds=event.seconds,
                bytes_written=written(),
            )

        # Rank 0's word counts for all: on another kind of processor the last bits may differ.
        receipt = self.world.from_main(receipt_of)
        if receipt.problems:
            self._refuse(receipt, event)
        self._receipt, self._growing = receipt, growing
        self.verified(receipt)

    def _conclude(self, receipt: Receipt, *, trained: bool) -> None:
        """Write the receipt: after the last check, of the first gradients, or without if no step comes of the event."""
        assert self._growing is not None and self.base is not None
        event = Event(self.base.folder.name, self._growing.source.folder.name, 0.0, "")
        if trained:
            found = check_gradients(self.tensors, self._growing)
            if found is None:
                return
            receipt.without_gradient, dead = found
            receipt.problems += dead
            receipt.gradients_checked = True
        self._receipt = self._growing = None
        if receipt.problems:
            self._refuse(receipt, event)
        self.world.from_main(lambda: self._publish(receipt, event))

    def _publish(self, receipt: Receipt, event: Event) -> None:
        # In this order: after a kill in between it is all done again, and the monitor knows its own record.
        if self.monitor is not None:
            self.monitor.growth(self.progress, {"checkpoint": event.name, **receipt.record()}, receipt.words())
        receipt.write(event.receipt(self.run_dir))
        self._forget_probe(event)

    def _refuse(self, receipt: Receipt, event: Event) -> NoReturn:
        path = event.folder(self.run_dir) / "broken.json"
        self.world.from_main(lambda: receipt.write(path))
        raise CheckpointError(
            f"{self.checkpoints.folder / event.name}: not what was promised, see {path}:\n{receipt.words()}\n"
            f"the checkpoint before, {event.source}, is whole; remove {event.name} to repeat the event from it"
        )

    # The parts.

    _saved_in = 0.0
    """Seconds that the checkpoint took which the coming event starts from."""

    def _probe_before(self, position: Position) -> None:
        path = probe_path(self.run_dir, position.name)
        if self.world.from_main(path.exists):  # an earlier branch of a race was there
            return
        probe = self._probe(self.probe_samples, self.config.train.micro_batch_size)
        self.world.from_main(lambda: _save(probe, path))

    def _forget_probe(self, event: Event) -> None:
        """Nothing is compared with it any more, unless other branches of a race are."""
        if not self.comes_back():
            probe_path(self.run_dir, event.source).unlink(missing_ok=True)

    def _probe(self, samples: int, micro_batch_size: int) -> Probe:
        """What the engine's model says of held-out samples, the same ones at every event."""
        batches = evaluation_batches(
            self.splits.get("val", self.splits["train"]),
            samples=samples,
            micro_batch_size=micro_batch_size,
            rank=0,
            world_size=1,
            mask_documents=self.config.data.mask_documents,
        )
        self.model.set_step(self.progress.step)
        precision = self.origin.precision
        assert precision is not None  # it trains
        conditions = conditions_of(self.world.device, precision, self.world.size)
        return take_probe(self.engine, batches, self.tokenizer.token_bytes(), self.world.device, conditions)

    def _event_before(self) -> Event | None:
        assert self.base is not None
        return Event.read(self.run_dir, self.base.folder.name)


def _save(probe: Probe, path: Path) -> None:
    with os_errors_named(path):
        path.parent.mkdir(exist_ok=True)
    probe.save(path)
