"""A pre-trained model of transformers as a checkpoint, so that it can be grown before a run trains it.

    with imported("hf:gpt2_folder", config, beside=Path("runs")) as checkpoint:
        grow(checkpoint, plan_growth(checkpoint, "interpose"), Path("runs/deep"))

The checkpoint lies in a folder of its own, which goes at the end; what growth links from it stays.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dsllm.config import RunConfig
from dsllm.data.files import os_errors_named
from dsllm.models import skeleton
from dsllm.store import TensorStore, write_tensor
from dsllm.training.beginning import first_values, with_sizes
from dsllm.training.checkpoints import Checkpoint, Origin, Snapshot, checkpoint_name, complete
from dsllm.training.lock import take
from dsllm.training.progress import Progress
from dsllm.training.sources import resolve_vocabulary, sample_order


@contextmanager
def imported(name: str, config: RunConfig, beside: Path) -> Iterator[Checkpoint]:
    """The model `name` (`hf:DIR`) as a checkpoint of a run by `config` that has made no step yet, in a folder `beside`.

    Raises `UserError` if there is no such model, or it does not fit the configuration or its data.
    """
    config, tokenizer = resolve_vocabulary(with_sizes(config.model_copy(update={"init_from": name}), fresh=True))
    model = skeleton(config.model)
    fill = first_values(config, model, tokenizer)
    folder = beside / f".imported.{config.run_dir.name}"
    file, _ = take(folder / ".lock")
    with file:
        try:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of a command that was killed
            path = folder / "checkpoints" / checkpoint_name(0)
            with os_errors_named(path):
                path.mkdir(parents=True)
                entries = []
                for ours, parameter in model.named_parameters():
                    tensor = torch.empty(parameter.shape, device="cpu")
                    fill(ours, tensor)
                    entries.append(write_tensor(path, "weight", ours, tensor))
            names = {parameter: ours for ours, parameter in model.named_parameters()}
            every = model.named_parameters(remove_duplicate=False)
            aliases = {ours: names[parameter] for ours, parameter in every if ours != names[parameter]}
            begun = config.model_copy(update={"init_from": None, "growth": None})
            origin = Origin(1, 0, None, tokenizer.info, sample_order(config))
            asked = config.model.model_dump(mode="json")
            snapshot = Snapshot(Progress(), origin, begun, asked, {"trainer": {}, "scaler": {}})
            complete(TensorStore.of(path, entries, aliases, {}), snapshot)
            yield Checkpoint.read(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
