"""Evaluate a run's model on one of its splits: loss in nats per token, bits per byte, perplexity.

python launch/evaluate.py RUN_OR_CHECKPOINT [--split test] [--samples N] [--micro_batch_size 8]
"""

import argparse
import json
from pathlib import Path

import torch

from dsllm.command_line import positive
from dsllm.data.batches import evaluation_batches
from dsllm.errors import user_errors_exit
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.evaluation import evaluate
from dsllm.training.loading import load_model
from dsllm.training.run_folder import check_same_tokenizer
from dsllm.training.sources import open_split, resolve_vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--samples", type=positive, help="samples, evenly spaced over the split; by default all")
    parser.add_argument("--micro_batch_size", type=positive, default=8, help="samples in one forward pass")
    arguments = parser.parse_args()
    with user_errors_exit():
        checkpoint = find_checkpoint(arguments.run)
        config, tokenizer = resolve_vocabulary(checkpoint.config())
        check_same_tokenizer(checkpoint, tokenizer.info)
        batches = evaluation_batches(
            open_split(config, arguments.split),
            samples=arguments.samples,
            micro_batch_size=arguments.micro_batch_size,
            rank=0,
            world_size=1,
            mask_documents=config.data.mask_documents,
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        result = evaluate(load_model(checkpoint.path).to(device), batches, tokenizer.token_bytes(), device)
    assert result is not None
    step = checkpoint.progress.step
    print(f"{arguments.split} at step {step}: {result}")
    facts = {"split": arguments.split, "step": step, "loss": result.loss, "bits_per_byte": result.bits_per_byte}
    print(json.dumps({**facts, "perplexity": result.perplexity, "tokens": result.tokens}))


if __name__ == "__main__":
    main()
