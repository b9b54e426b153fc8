"""The loss by a token's place in the windows that models merge: what a leak of windows would show in.

strides 4 × 4, so windows of 16:    position    0 … 15   16 … 31   32 …
                                    phase       0 … 15    0 … 15    0 …

All models of a comparison are asked with the longest windows of any, on the same test samples.
"""

from collections.abc import Mapping
from pathlib import Path

from dsllm.data.batches import evaluation_batches
from dsllm.errors import DataError
from dsllm.machine import default_device
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.evaluation import phase_losses
from dsllm.training.loading import load_model
from dsllm.training.sources import open_split

SAMPLES = 64
"""Of test, evenly spaced."""


def measure_phases(folders: Mapping[str, Path]) -> dict[str, list[float]]:
    """By name the mean loss of each phase, nats per token; nothing if no model merges, or of problems or lost data."""
    device = default_device()
    models = {name: load_model(folder).to(device) for name, folder in folders.items()}
    period = max((max(model.spans) for model in models.values()), default=1)
    found = {}
    for name, model in models.items() if period > 1 else ():
        config = find_checkpoint(folders[name]).config()
        try:
            source = open_split(config, "test")
        except DataError:
            continue
        if source.labelled or period > source.context:
            continue
        batches = evaluation_batches(
            source,
            samples=SAMPLES,
            micro_batch_size=config.train.micro_batch_size,
            rank=0,
            world_size=1,
            mask_documents=config.data.mask_documents,
        )
        found[name] = phase_losses(model, batches, period, device)[0].tolist()
    return found
