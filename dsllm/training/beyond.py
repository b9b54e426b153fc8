"""Chains longer than those trained on: a model asked with more tokens than it was trained with, if its positions allow.

trained on chains of 1 … 16 steps, context 17     asked in split `beyond`: 17 … 24 steps, context 25
"""

from pathlib import Path

import torch

from dsllm.config import RunConfig
from dsllm.data.batches import evaluation_batches
from dsllm.data.manifest import Manifest
from dsllm.data.problems import longest_problem
from dsllm.errors import UserError
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.evaluation import evaluate
from dsllm.training.loading import load_model
from dsllm.training.reasoning import ChainAccuracy
from dsllm.training.sources import open_split, resolve_vocabulary

SPLIT = "beyond"


def with_room_for_beyond(config: RunConfig) -> RunConfig | None:
    """The run with a context that holds the problems of `beyond`; None if its data have no such split.

    Raises:
        UserError: the model's positions end with its context, and the problems are longer.
        DataError: the data have gone, or are damaged.
    """
    paths = [Path(path) for path in config.data.paths]
    if not all(SPLIT in Manifest.read(path).splits for path in paths):
        return None
    longest = max(longest_problem(path, SPLIT) for path in paths)
    if longest <= config.model.context:
        return config
    if not config.model.any_length:
        raise UserError(
            f"{config.data.paths[0]}: problems of up to {longest:,} tokens in split {SPLIT}, and the positions of "
            f"this model end at model.context = {config.model.context}; train with at least {longest}"
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"context": longest})})


def accuracy_beyond(run: Path) -> ChainAccuracy | None:
    """Of a run's newest checkpoint on all of `beyond`.

    None if it cannot be asked: there is no such split, or it has gone, or the model's positions end before.
    """
    checkpoint = find_checkpoint(run)
    try:
        config, tokenizer = resolve_vocabulary(checkpoint.config())
        longer = with_room_for_beyond(config)
        if longer is None:
            return None
        source = open_split(longer, SPLIT)
    except UserError:
        return None
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    batches = evaluation_batches(
        source,
        samples=None,
        micro_batch_size=config.train.micro_batch_size,
        rank=0,
        world_size=1,
        mask_documents=config.data.mask_documents,
    )
    model = load_model(checkpoint.path, longer.model.context).to(device)
    result = evaluate(model, batches, tokenizer.token_bytes(), device)
    return None if result is None else result.chains
