"""The loop: from a run's configuration to its finished folder.

    with joined() as world:
        BaseTrainer(config, world).train()

Another training algorithm is a subclass that overrides what it does otherwise, mostly `loss`:

    class LabelSmoothing(BaseTrainer):
        def loss(self, batch):
            logits = self.engine(batch.input_ids, document_ids=batch.document_ids).logits
            return cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), label_smoothing=0.1)
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from dsllm.config import ModelConfig, RunConfig
from dsllm.data.batches import Batch
from dsllm.errors import CheckpointError, ConfigError, Stopped, TrainingError
from dsllm.machine import machine_name
from dsllm.models import skeleton
from dsllm.models.language_model import LanguageModel
from dsllm.section import leaves
from dsllm.store import TensorStore
from dsllm.training.agreement import check_agreement, facts_of
from dsllm.training.beginning import first_values, with_sizes
from dsllm.training.boards import check_boards
from dsllm.training.checkpoints import Checkpoint, Checkpoints, Origin, Snapshot, incomplete_checkpoints
from dsllm.training.compiling import check_compiler
from dsllm.training.ds_config import complete_ds_config
from dsllm.training.engine import (
    ask_before_updates,
    build_engine,
    scaler_state,
    set_lr,
    set_scaler,
    take_step,
    with_weights,
)
from dsllm.training.evaluation import Evaluation
from dsllm.training.guard import Guard
from dsllm.training.judge import Judge
from dsllm.training.lock import RunLock
from dsllm.training.monitor import Monitor
from dsllm.training.precision import resolved_precision
from dsllm.training.progress import Progress
from dsllm.training.rates import Outcome, Rates
from dsllm.training.run_folder import check_resumable, clear_for, write_config
from dsllm.training.schedule import Schedule
from dsllm.training.signals import StopSignals
from dsllm.training.sources import BEYOND, Batches, MicroBatch, open_splits, resolve_vocabulary, sample_order
from dsllm.training.tensors import EngineTensors
from dsllm.training.world import World

EVALUATED_BY = ("data.", "train.eval_samples", "train.test_samples")
"""Keys by which an evaluation of the same step is another one."""


class BaseTrainer:
    """Trains a language model on a DeepSpeed engine, from a run's configuration to its finished folder.

    Override methods of the first part for another training algorithm; the loop stays. Attributes for them: `config`,
    `world`, `model` (a `LanguageModel`), `engine` (DeepSpeed's, around it), `tensors` (its whole tensors by name),
    `progress`.
    """

    grows: ClassVar[bool] = False
    """Whether it does what a `growth` section says."""

    def __init__(self, config: RunConfig, world: World, fresh: bool = False):
        """Open the data, build the model and its engine, and resume from the newest complete checkpoint of the run.

        `fresh` sets aside what the run's folder holds and starts over. Raises `UserError` on every rank alike.
        """
        self.world = world
        if config.growth is not None and not self.grows:
            raise ConfigError(
                f"growth: {type(self).__name__} trains the model as it is; derive it from ProgressiveTrainer first, or "
                f"leave the section out"
            )
        sized = world.together(lambda: with_sizes(config, fresh))
        self.config, self.tokenizer = world.together(lambda: resolve_vocabulary(sized))
        train = self.config.train
        self.run_dir = Path(config.run_dir)
        check_agreement(world, world.together(lambda: facts_of(config, self.tokenizer)))
        self.splits = world.together(lambda: open_splits(self.config))
        self.loader = world.together(lambda: Batches(self.config, self.splits["train"], world.rank, world.size))
        self.checkpoints = Checkpoints(self.run_dir, world, train.keep_checkpoints)
        checkpoint = None if fresh else self.checkpoints.newest()
        saved = None if checkpoint is None else checkpoint.origin.precision
        precision = resolved_precision(train.precision, saved, world)
        ds_config = world.together(lambda: complete_ds_config(train, world.size, precision, world.device.type))
        self.origin = Origin(
            world_size=world.size,
            zero_stage=ds_config.get("zero_optimization", {}).get("stage", 0),
            precision=precision,
            tokenizer=self.tokenizer.info,
            order=world.together(lambda: sample_order(self.config)),
        )
        if checkpoint is not None:
            world.together(lambda: check_resumable(checkpoint, self.config, self.origin))
        found = None if checkpoint is None else world.together(lambda: self.model_section(checkpoint))
        self.model_config = found or self.config.model
        world.together(self.check)
        world.from_main(lambda: check_boards(self.config.monitor))
        self.judge = world.together(lambda: Judge(self.config, self.splits, self.tokenizer, world))
        torch.manual_seed(train.seed)  # for a model that is built whole: alike on every rank
        self.model = self.build_model()
        world.together(lambda: self.model.checkpoint_activations(train.activation_checkpointing))
        if train.compile:
            world.together(lambda: check_compiler(world.device))
            self.model.compile_parts()
        first = None
        if checkpoint is None:
            first = world.together(lambda: first_values(self.config, self.model, self.tokenizer))
        # The folder is touched only when all that a user can get wrong has been checked.
        self.lock = RunLock(self.run_dir, world)
        world.from_main(self.checkpoints.check_unchanged)
        self._damaged = world.from_main(self.checkpoints.set_damaged_aside)
        aside = world.from_main(lambda: clear_for(self.config, fresh)) if checkpoint is None else None
        self.progress = Progress() if checkpoint is None else checkpoint.progress
        self.tokens_per_step = train.global_batch_size * self.config.model.context
        self.schedule = Schedule.of(train, self.tokens_per_step)

        self.parameters = self.model.count_parameters()  # counted before ZeRO-3 parts them
        self.trainable_parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.flops_per_token = self.model.flops_per_token(self.config.model.context)
        self.base = None if checkpoint is None else world.together(checkpoint.store)
        groups = with_weights(self.model, first, self.base, self.parameter_groups(), ds_config, world)
        self.engine = build_engine(self.model, groups, train, ds_config, world)
        self.tensors = EngineTensors(self.engine, self.model)
        self.guard = Guard(train)
        ask_before_updates(self.engine, self.guard.allows)
        if checkpoint is not None and self.base is not None:
            self.tensors.restore(self.base)
            set_scaler(self.engine, checkpoint.state["scaler"])
            self.guard.load_state(**checkpoint.state.get("guard", {}))  # a model that has just grown brings none
            self.load_state(checkpoint.state["trainer"])
        self.signals = StopSignals(world.maximum)
        self.judge.meet(self.engine, self.model, self.parameters, self.signals.agreed)
        self.rates = Rates(self.tokens_per_step)
        self.monitor = world.together(lambda: self._begin(checkpoint is not None, aside))

    # What a training algorithm may override.

    def check(self) -> None:
        """Raise `UserError` for what the algorithm cannot do with `self.config`; before anything is written."""

    def build_model(self) -> LanguageModel:
        """The model to train, from `self.model_config`: on the meta device, or on the CPU, alike on all ranks."""
        return skeleton(self.model_config)

    def model_section(self, checkpoint: Checkpoint) -> ModelConfig:
        """The model whose tensors a checkpoint of this run holds, if it may be another than the command's."""
        if checkpoint.config().model != self.config.model:
            raise CheckpointError(f"{checkpoint.path}: its model has grown; go on with the run's growth section")
        return self.config.model

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for AdamW: params, weight_decay and optionally lr_scale. All that trains is in exactly one."""
        return self.model.parameter_groups(self.config.train.weight_decay)

    def loss(self, batch: MicroBatch) -> torch.Tensor:
        """The scalar to minimise, in nats per token, of one micro-batch; call `self.engine`, not the model."""
        return self.engine(batch.input_ids, targets=batch.targets, document_ids=batch.document_ids).loss

    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.schedule.lr(self.progress.tokens + self.tokens_per_step)

    def before_step(self) -> None:
        """Called on every rank before each optimizer step, when evaluation and checkpoint of the last are done."""

    def before_update(self) -> None:
        """Called on every rank between a step's last backward pass and its update: `self.tensors.gradient` is there."""

    def after_step(self, outcome: Outcome) -> None:
        """Called on every rank after each optimizer step, before evaluation and checkpoint."""

    def after_evaluation(self, split: str, result: Evaluation) -> None:
        """Called on every rank with what each evaluation gave."""

    def finish(self) -> None:
        """Called on every rank after the last evaluation."""

    def state(self) -> dict[str, Any]:
        """What the algorithm keeps in a checkpoint besides tensors and progress, as JSON; `load_state` gets it back."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Called on every rank when the run resumes."""

    # The loop.

    def train(self) -> None:
        """Train to the last step, evaluating and saving as configured, then evaluate on test and what is beyond.

        Raises `Stopped`, after a complete checkpoint, if a signal asked for it; `Reinitialise`, if it is to go on from
        the newest one with another model.
        """
        train = self.config.train
        saved = self.progress.step
        with self.signals:
            while True:
                done = self.progress.step >= train.steps
                if self._due(train.eval_every) or (done and train.eval_every):
                    self.evaluate("val", train.eval_samples)
                stop = self.signals.agreed()
                if (self._due(train.checkpoint_every) or done or stop) and self.progress.step > saved:
                    self.save()
                    saved = self.progress.step
                if stop:
                    self._stopped(stop)
                if done:
                    break
                self.before_step()
                outcome = self.step()
                if outcome is not None:
                    self._record(outcome)
                    self.after_step(outcome)
            for split in ("test", BEYOND):
                if split in self.splits:
                    self.evaluate(split, train.test_samples)
            if self.signals.agreed():
                self._stopped(self.signals.agreed())
        self.finish()
        if self.monitor is not None:
            self.monitor.end(self.progress, leaves(self.config.model_dump(mode="json")))

    def step(self) -> Outcome | None:
        """One optimizer step over the next global batch; advances `progress`.

        A signal cuts it short between micro-batches: None, and nothing has changed. A step may take longer than a
        launcher or a scheduler waits.
        """
        begun = time.perf_counter()
        batch = self.loader.batch(self.progress.consumed_samples, self.progress.flops)
        waited = time.perf_counter() - begun
        lr = self.lr()
        set_lr(self.engine, lr)
        self.model.set_step(self.progress.step + 1)
        self.engine.train()
        scaler = scaler_state(self.engine)
        total = torch.zeros((), device=self.world.device)
        count, updated = len(batch.tokens), True
        for index, micro in enumerate(self._micro_batches(batch)):
            if self.signals.agreed():
                return None
            loss = self.loss(micro) * (1.0 if batch.weights is None else float(batch.weights[index]))
            self.engine.backward(loss)
            total += loss.detach()
            if index == count - 1:
                self.before_update()
                mean = float(self.world.total(total.double().cpu())) / count / self.world.size
                self.guard.begin(mean, self.loader.chains)
            updated = take_step(self.engine, self.config.train.grad_clip, self.guard.allows)
        skipped = self.guard.end(updated, scale_sinks=bool(scaler))
        if self.guard.spiked:
            set_scaler(self.engine, scaler)  # nothing overflowed: it keeps its scale
        self.progress.advance(
            samples=self.config.train.global_batch_size,
            tokens=self.tokens_per_step,
            flops=self.tokens_per_step * self.flops_per_token,
            applied=updated,
        )
        return Outcome(self.guard.loss, self.guard.norm, lr, skipped, begun, waited)

    def evaluate(self, split: str, samples: int | None) -> None:
        """Record the loss on evenly spaced samples of a split, all if None; see `Judge`."""
        result = self.judge.evaluate(split, samples, self.progress, self.monitor)
        if result is not None:
            self.after_evaluation(split, result)

    def save(self) -> Path:
        """Write a checkpoint of this step, complete or not there at all."""
        if self.monitor is not None:
            self.monitor.sync()
        path = self.checkpoints.save(self.tensors, self.snapshot(), self.base)
        self.base = self.world.together(lambda: TensorStore.read(path))
        return path

    def snapshot(self) -> Snapshot:
        """What a checkpoint of this step says besides the tensors."""
        return Snapshot(
            progress=self.progress,
            origin=self.origin,
            config=self.config.model_copy(update={"model": self.model_config}),
            asked=self.config.model.model_dump(mode="json"),
            state={"trainer": self.state(), "scaler": scaler_state(self.engine), "guard": self.guard.state()},
        )

    # The parts.

    def _begin(self, resumed: bool, aside: Path | None) -> Monitor | None:
        """Open the run's records, on rank 0, and say what begins here."""
        if not self.world.is_main:
            return None
        changed = write_config(self.run_dir, self.config)
        monitor = Monitor(self.run_dir, self.config.monitor, self.progress, self.config.train.steps)
        if any(line.startswith(EVALUATED_BY) for line in changed):
            monitor.forget_evaluations()
        facts = {
            "world_size": self.world.size,
            "zero_stage": self.origin.zero_stage,
            "precision": self.origin.precision,
            "tokens_per_step": self.tokens_per_step,
            "parameters": self.parameters,
            "machine": machine_name(self.world.device),
            "note": list(self.config.model.remarks()),
            "changed": changed,
            "set_aside": aside,
            "damaged": self._damaged,
            "incomplete": [path.name for path in incomplete_checkpoints(self.run_dir)],
        }
        monitor.begin(self.progress, resumed, facts)
        return monitor

    def _micro_batches(self, batch: Batch) -> Iterator[MicroBatch]:
        return (MicroBatch.of(batch, index, self.world.device) for index in range(len(batch.tokens)))

    def _record(self, outcome: Outcome) -> None:
        """Record the first step, every `monitor.log_every`-th and the last; a skipped update always.

        Raises `TrainingError` if too many were skipped.
        """
        self.rates.add(outcome)
        if outcome.skipped is not None:
            self._skipped(outcome)
        told = self.progress.step in (1, self.config.train.steps) or self._due(self.config.monitor.log_every)
        if told and self.monitor is not None:
            values = {"loss": outcome.loss, "lr": outcome.lr, "grad_norm": outcome.grad_norm}
            self.monitor.train(self.progress, {**values, **self.rates.take()})

    def _skipped(self, outcome: Outcome) -> None:
        """Tell of a skipped update; raises `TrainingError` if it is the last of too many in a row."""
        samples = self.loader.numbers(self.progress.consumed_samples - self.config.train.global_batch_size)
        if self.monitor is not None:
            facts = {"reason": outcome.skipped, "loss": outcome.loss, "grad_norm": outcome.grad_norm}
            self.monitor.event(self.progress, "skipped step", **facts, samples=samples)
            print(f"step {self.progress.step}: update skipped, {outcome.skipped}", flush=True)
        words = self.guard.exhausted(self.progress.step, samples)
        if words:
            raise TrainingError(f"{self.run_dir}: {words}")

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _stopped(self, signum: int) -> None:
        stopped = Stopped(signum)
        if self.monitor is not None:
            self.monitor.event(self.progress, "signal", signal=stopped.signal_name)
            self.monitor.close()
            print(f"{stopped} at step {self.progress.step}; the same command resumes", flush=True)
        raise stopped
