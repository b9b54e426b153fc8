"""A run's evaluations: how good its model is, what it writes, and whether its loss is too good to be true.

    val, every train.eval_every steps     loss and bits per byte ─▶ leak alarm ─▶ continuations
    test and beyond, at the end           the same, without continuations

By every rank alike and through the engine, for at ZeRO 3 each has a part of every weight.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from dsllm.config import RunConfig
from dsllm.data.batches import evaluation_batches
from dsllm.data.dataset import SampleSource
from dsllm.models.language_model import LanguageModel
from dsllm.tokenizer import Tokenizer
from dsllm.training.compiling import uncompiled
from dsllm.training.continuations import Continuation, continuations_of
from dsllm.training.evaluation import Evaluation, evaluate
from dsllm.training.leak import LeakAlarm
from dsllm.training.monitor import Monitor
from dsllm.training.progress import Progress
from dsllm.training.world import World


class Judge:
    """Made in two steps: what a user can get wrong is found before there is an engine.

    Raises `ConfigError` for prompts that cannot be continued.
    """

    def __init__(self, config: RunConfig, splits: Mapping[str, SampleSource], tokenizer: Tokenizer, world: World):
        self._config, self._splits, self._world = config, splits, world
        self._token_bytes = tokenizer.token_bytes()
        self._continuations = continuations_of(config, splits, tokenizer)

    def meet(self, engine: Any, model: LanguageModel, parameters: int, stop: Callable[[], Any]) -> None:
        """What is to be judged: `model` in its `engine`; `stop` says whether a signal came, and cuts all short."""
        self._engine, self._model, self._stop = engine, model, stop
        masks = self._config.data.mask_documents
        self._alarm = LeakAlarm(parameters, model.vocab_size, self._world.device, masks)

    def evaluate(
        self, split: str, samples: int | None, progress: Progress, monitor: Monitor | None
    ) -> Evaluation | None:
        """Record the loss on evenly spaced samples of a split, all if None, unless this step's stands in the records.

        None if it stands there, or if a signal came: then nothing is recorded, and the resumed run evaluates.
        """
        if self._world.from_main(lambda: monitor is not None and monitor.knows(split, progress.step)):
            return None
        begun = time.perf_counter()
        result = self.measure(self._splits[split], samples, progress.step)
        if result is None:
            return None
        if monitor is not None:
            monitor.evaluation(progress, split, result, time.perf_counter() - begun)
        words = self._alarm.after(self._engine, self._splits[split], split, result.bits_per_byte)
        if words and monitor is not None:
            monitor.alarm(progress, words)
        if split == "val":
            begun = time.perf_counter()
            written = self._written()
            if monitor is not None:
                monitor.continuations(progress, written, time.perf_counter() - begun)
        return result

    def measure(self, source: SampleSource, samples: int | None, step: int) -> Evaluation | None:
        """The loss on evenly spaced samples of a source, all if None; the same on every rank. None if a signal came."""
        batches = evaluation_batches(
            source,
            samples=samples,
            micro_batch_size=self._config.train.micro_batch_size,
            rank=self._world.rank,
            world_size=self._world.size,
            mask_documents=self._config.data.mask_documents,
        )
        self._model.set_step(step)
        self._engine.eval()
        world = self._world
        return evaluate(self._engine, batches, self._token_bytes, world.device, world.total, self._stop)

    def _written(self) -> list[Continuation]:
        with uncompiled(self._config.train.compile):
            return self._continuations.write(self._engine, self._world.device, self._stop)
