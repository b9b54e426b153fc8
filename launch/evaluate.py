"""Evaluate a run's model on one of its splits: loss in nats per token, bits per byte, perplexity.

python launch/evaluate.py RUN_OR_CHECKPOINT [--split test] [--samples N] [--micro_batch_size 8] [--period 64]
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsllm.command_line import positive
from dsllm.data.batches import EvaluationBatch, evaluation_batches
from dsllm.errors import UserError, user_errors_exit
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.evaluation import evaluate, phase_losses
from dsllm.training.leak import LeakAlarm
from dsllm.training.loading import load_model
from dsllm.training.run_folder import check_same_tokenizer
from dsllm.training.sources import open_split, resolve_vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--samples", type=positive, help="samples, evenly spaced over the split; by default all")
    parser.add_argument("--micro_batch_size", type=positive, default=8, help="samples in one forward pass")
    parser.add_argument("--period", type=positive, help="also the loss by phase: position in the sample mod this")
    arguments = parser.parse_args()
    with user_errors_exit():
        checkpoint = find_checkpoint(arguments.run)
        config, tokenizer = resolve_vocabulary(checkpoint.config())
        check_same_tokenizer(checkpoint, tokenizer.info)
        source = open_split(config, arguments.split)
        if arguments.period is not None and arguments.period > config.model.context:
            raise UserError(f"--period {arguments.period}: longer than the context, {config.model.context}; take less")

        def batches() -> Iterator[EvaluationBatch]:
            return evaluation_batches(
                source,
                samples=arguments.samples,
                micro_batch_size=arguments.micro_batch_size,
                rank=0,
                world_size=1,
                mask_documents=config.data.mask_documents,
            )

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(checkpoint.path).to(device)
        result = evaluate(model, batches(), tokenizer.token_bytes(), device)
        assert result is not None
        alarm = LeakAlarm(model.count_parameters(), model.vocab_size, device, config.data.mask_documents)
        words = alarm.after(model, source, arguments.split, result.bits_per_byte)
        step = checkpoint.progress.step
        print(f"{arguments.split} at step {step}: {result}")
        if words is not None:
            print(words)
        facts: dict[str, Any] = {
            "split": arguments.split,
            "step": step,
            "loss": result.loss,
            "bits_per_byte": result.bits_per_byte,
        }
        facts |= {"perplexity": result.perplexity, "tokens": result.tokens}
        if arguments.period is not None:
            losses, _ = phase_losses(model, batches(), arguments.period, device)
            seen = losses[~np.isnan(losses)]
            print(f"loss by phase, position mod {arguments.period}: {' '.join(f'{loss:.3f}' for loss in seen)}")
            if seen.min() > 0:
                print(f"  the worst phase has {seen.max() / seen.min():.3f} times the loss of the best")
            facts["loss_by_phase"] = seen.tolist()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
