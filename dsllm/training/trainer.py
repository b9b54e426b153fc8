"""The loop: from a run's configuration to its finished folder.

    with joined() as world:
        BaseTrainer(config, world).train()

Another training algorithm is a subclass that overrides `build_model`, `parameter_groups`, `loss` or `after_step`:

    class LabelSmoothing(BaseTrainer):
        def loss(self, batch):
            logits = self.engine(batch.input_ids, document_ids=batch.document_ids).logits
            return cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), label_smoothing=0.1)
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dsllm.config import RunConfig
from dsllm.data.batches import Batch, BatchLoader, Prefetcher, evaluation_batches
from dsllm.errors import Stopped
from dsllm.models import build_model
from dsllm.models.language_model import LanguageModel
from dsllm.training.checkpoints import Checkpoint, Checkpoints, Origin, incomplete_checkpoints
from dsllm.training.ds_config import complete_ds_config
from dsllm.training.engine import build_engine, set_lr, take_step
from dsllm.training.evaluation import evaluate
from dsllm.training.lock import RunLock
from dsllm.training.monitor import Monitor
from dsllm.training.precision import Precision, fastest_precision
from dsllm.training.progress import Progress
from dsllm.training.rates import Outcome, Rates
from dsllm.training.run_folder import check_resumable, clear_for, write_config
from dsllm.training.schedule import Schedule
from dsllm.training.signals import StopSignals
from dsllm.training.sources import MicroBatch, open_splits, resolve_vocabulary, sample_order
from dsllm.training.world import World


class BaseTrainer:
    """Trains a language model on a DeepSpeed engine, from a run's configuration to its finished folder.

    Override `build_model`, `parameter_groups`, `loss` or `after_step` for another training algorithm; the loop stays.
    Attributes for them: `config`, `world`, `model` (a `LanguageModel`), `engine` (DeepSpeed's, around it), `progress`.
    """

    def __init__(self, config: RunConfig, world: World, fresh: bool = False):
        """Open the data, build the model and its engine, and resume from the newest complete checkpoint of the run.

        `fresh` sets aside what the run's folder holds and starts over. Raises `UserError` on every rank alike.
        """
        self.world = world
        self.config, self.tokenizer = world.together(lambda: resolve_vocabulary(config))
        train = self.config.train
        self.run_dir = Path(config.run_dir)
        self.splits = world.together(lambda: open_splits(self.config))
        self.loader = world.together(self._loader)
        self.checkpoints = Checkpoints(self.run_dir, world, train.keep_checkpoints)
        checkpoint = None if fresh else self.checkpoints.newest()
        precision = self._precision(checkpoint)
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
        # The folder is touched only when all that a user can get wrong has been checked.
        self.lock = RunLock(self.run_dir, world)
        aside = world.from_main(lambda: clear_for(self.config, fresh)) if checkpoint is None else None
        self.progress = Progress() if checkpoint is None else checkpoint.progress
        self.tokens_per_step = train.global_batch_size * self.config.model.context
        self.schedule = Schedule.of(train, self.tokens_per_step)

        torch.manual_seed(train.seed)  # every rank builds the same model
        self.model = self.build_model()
        self.model.checkpoint_activations(train.activation_checkpointing)
        self.parameters = self.model.count_parameters()  # counted before ZeRO-3 parts them
        self.flops_per_token = self.model.flops_per_token(self.config.model.context)
        self.engine = build_engine(self.model, self.parameter_groups(), train, ds_config, world)
        if checkpoint is not None:
            world.together(lambda: self.checkpoints.load(self.engine, checkpoint))
        self.signals = StopSignals(world)
        self.rates = Rates(self.tokens_per_step)
        self.monitor = world.together(lambda: self._begin(checkpoint is not None, aside))

    # What a training algorithm may override.

    def build_model(self) -> LanguageModel:
        """The model to train, on the CPU in fp32, from `self.config`; seeded alike on all ranks."""
        return build_model(self.config.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for AdamW: params, weight_decay and optionally lr_scale. All that trains is in exactly one."""
        return self.model.parameter_groups(self.config.train.weight_decay)

    def loss(self, batch: MicroBatch) -> torch.Tensor:
        """The scalar to minimise, in nats per token, of one micro-batch; call `self.engine`, not the model."""
        return self.engine(batch.input_ids, targets=batch.targets, document_ids=batch.document_ids).loss

    def after_step(self, outcome: Outcome) -> None:
        """Called on every rank after each optimizer step, before evaluation and checkpoint."""

    # The loop.

    def train(self) -> None:
        """Train to the last step, evaluating and saving as configured, then evaluate on the test split.

        Raises `Stopped`, after a complete checkpoint, if a signal asked for it.
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
                    self.checkpoints.save(self.engine, self.progress, self.config, self.origin)
                    saved = self.progress.step
                if stop:
                    self._stopped(stop)
                if done:
                    break
                outcome = self.step()
                if outcome is not None:
                    self._record(outcome)
                    self.after_step(outcome)
            if "test" in self.splits:
                self.evaluate("test", train.test_samples)
            if self.signals.agreed():
                self._stopped(self.signals.agreed())
        if self.monitor is not None:
            self.monitor.event(self.progress, "end")
            self.monitor.close()

    def step(self) -> Outcome | None:
        """One optimizer step over the next global batch; advances `progress`.

        A signal cuts it short between micro-batches: None, and nothing has changed. A step may take longer than a
        launcher or a scheduler waits.
        """
        begun = time.perf_counter()
        batch = self.loader.batch(self.progress.consumed_samples)
        waited = time.perf_counter() - begun
        lr = self.schedule.lr(self.progress.tokens + self.tokens_per_step)
        set_lr(self.engine, lr)
        self.engine.train()
        total = torch.zeros((), device=self.world.device)
        grad_norm, applied = None, True
        for micro in self._micro_batches(batch):
            if self.signals.agreed():
                return None
            loss = self.loss(micro)
            self.engine.backward(loss)
            total += loss.detach()
            grad_norm, applied = take_step(self.engine)
        self.progress.advance(
            samples=self.config.train.global_batch_size,
            tokens=self.tokens_per_step,
            flops=self.tokens_per_step * self.flops_per_token,
            applied=applied,
        )
        return Outcome(total / len(batch.tokens), grad_norm, lr, applied, begun, waited)

    def evaluate(self, split: str, samples: int | None) -> None:
        """Record the loss on evenly spaced samples of a split, all if None, unless this step's stands in the records.

        A signal cuts it short; then nothing is recorded, and the resumed run evaluates.
        """
        known = self.world.from_main(lambda: self.monitor is not None and self.monitor.knows(split, self.progress.step))
        if known:
            return
        begun = time.perf_counter()
        batches = evaluation_batches(
            self.splits[split],
            samples=samples,
            micro_batch_size=self.config.train.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            mask_documents=self.config.data.mask_documents,
        )
        self.engine.eval()
        token_bytes = self.tokenizer.token_bytes()
        result = evaluate(self.engine, batches, token_bytes, self.world.device, self.world.total, self.signals.agreed)
        if result is not None and self.monitor is not None:
            self.monitor.evaluation(self.progress, split, result, time.perf_counter() - begun)

    # The parts.

    def _loader(self) -> Prefetcher:
        loader = BatchLoader(
            self.splits["train"],
            seed=self.config.train.seed,
            global_batch_size=self.config.train.global_batch_size,
            micro_batch_size=self.config.train.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            mask_documents=self.config.data.mask_documents,
        )
        return Prefetcher(loader)

    def _precision(self, checkpoint: Checkpoint | None) -> Precision:
        asked = self.config.train.precision
        if asked != "auto":
            return asked
        if checkpoint is not None:
            return checkpoint.origin.precision
        return self.world.from_main(lambda: fastest_precision(self.world.device))

    def _begin(self, resumed: bool, aside: Path | None) -> Monitor | None:
        """Open the run's records, on rank 0, and say what begins here."""
        if not self.world.is_main:
            return None
        changed = write_config(self.run_dir, self.config)
        monitor = Monitor(self.run_dir, self.config.monitor, self.progress, self.config.train.steps)
        if changed:
            monitor.forget_evaluations()
        facts = {
            "world_size": self.world.size,
            "zero_stage": self.origin.zero_stage,
            "precision": self.origin.precision,
            "tokens_per_step": self.tokens_per_step,
            "parameters": self.parameters,
            "changed": changed,
            "set_aside": aside,
            "incomplete": [path.name for path in incomplete_checkpoints(self.run_dir)],
        }
        monitor.begin(self.progress, resumed, facts)
        return monitor

    def _micro_batches(self, batch: Batch) -> Iterator[MicroBatch]:
        for i, tokens in enumerate(batch.tokens):
            yield MicroBatch.on(
                self.world.device, tokens, None if batch.document_ids is None else batch.document_ids[i]
            )

    def _record(self, outcome: Outcome) -> None:
        """Record the first step and every `monitor.log_every`-th; a skipped update always."""
        self.rates.add(outcome)
        if not outcome.applied and self.monitor is not None:
            self.monitor.event(self.progress, "skipped step", loss=float(outcome.loss))
        if self.progress.step != 1 and not self._due(self.config.monitor.log_every):
            return
        begun = time.perf_counter()
        loss = self.world.total(outcome.loss.double().cpu()) / self.world.size
        rates = self.rates.take(time.perf_counter() - begun)
        if self.monitor is not None:
            norm = None if outcome.grad_norm is None else float(outcome.grad_norm)
            self.monitor.train(self.progress, {"loss": float(loss), "lr": outcome.lr, "grad_norm": norm, **rates})

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _stopped(self, signum: int) -> None:
        stopped = Stopped(signum)
        if self.monitor is not None:
            self.monitor.event(self.progress, "signal", signal=stopped.signal_name)
            self.monitor.close()
            print(f"{stopped} at step {self.progress.step}; the same command resumes", flush=True)
        raise stopped
