"""Evaluate a run's model on one of its splits: loss in nats per token, bits per byte, perplexity.

python launch/evaluate.py RUN_OR_CHECKPOINT [--split test] [--samples N] [--micro_batch_size 8] [--period 64]
python launch/evaluate.py RUN_OR_CHECKPOINT --reasoning      accuracy by chain length, trained on and beyond
python launch/evaluate.py RUN_OR_CHECKPOINT --cloze 500      words or answers of so many texts, as lm-eval asks
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dsllm.cloze import items_of
from dsllm.cloze import score as cloze
from dsllm.command_line import CommandLine, positive
from dsllm.config import RunConfig
from dsllm.data.batches import EvaluationBatch, evaluation_batches
from dsllm.data.dataset import SampleSource
from dsllm.data.problems import chance_of
from dsllm.errors import ConfigError, TooLongError, UserError, user_errors_exit
from dsllm.machine import default_device
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.evaluation import Evaluation, evaluate, phase_losses
from dsllm.training.leak import LeakAlarm
from dsllm.training.loading import load_model
from dsllm.training.reasoning import table
from dsllm.training.run_folder import check_same_tokenizer
from dsllm.training.sources import BEYOND, has_beyond, open_beyond, open_split, resolve_vocabulary


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    splits = ["train", "val", "test", BEYOND]
    parser.add_argument("--split", choices=splits, help="by default test")
    parser.add_argument("--samples", type=positive, help="samples, evenly spaced over the split; by default all")
    parser.add_argument("--micro_batch_size", type=positive, default=8, help="samples in one forward pass")
    parser.add_argument("--period", type=positive, help="also the loss by phase: position in the sample mod this")
    parser.add_argument("--cloze", type=positive, metavar="N", help="also how often the last word of N texts is said")
    parser.add_argument("--reasoning", action="store_true", help="accuracy by chain length, on test and beyond")
    arguments = parser.parse_args()
    with user_errors_exit("stopped"):
        if arguments.reasoning and arguments.split is not None:
            raise ConfigError(f"--split {arguments.split}: --reasoning asks test and {BEYOND}; leave out one of them")
        checkpoint = find_checkpoint(arguments.run)
        config, tokenizer = resolve_vocabulary(checkpoint.config())
        check_same_tokenizer(checkpoint, tokenizer.info)
        split = arguments.split or "test"
        sources = {split: open_beyond(config) if split == BEYOND else open_split(config, split)}
        source = sources[split]
        if arguments.reasoning:
            sources |= _longer(config, source)
        if arguments.period is not None and arguments.period > config.model.context:
            raise UserError(f"--period {arguments.period}: longer than the context, {config.model.context}; take less")

        def batches(source: SampleSource) -> Iterator[EvaluationBatch]:
            return evaluation_batches(
                source,
                samples=arguments.samples,
                micro_batch_size=arguments.micro_batch_size,
                rank=0,
                world_size=1,
                mask_documents=config.data.mask_documents,
            )

        device = default_device()
        model = load_model(checkpoint.path).to(device)
        step = checkpoint.progress.step
        results: dict[str, Evaluation] = {}
        for name, of in sources.items():
            found = evaluate(model, batches(of), tokenizer.token_bytes(), device)
            assert found is not None
            results[name] = found
            print(f"{name} at step {step}: {found}")
        result = results[split]
        alarm = LeakAlarm(model.count_parameters(), model.vocab_size, device, config.data.mask_documents)
        words = alarm.after(model, source, split, result.bits_per_byte)
        if words is not None:
            print(words)
        facts: dict[str, Any] = {
            "split": split,
            "step": step,
            "loss": result.loss,
            "perplexity": result.perplexity,
            "tokens": result.tokens,
        }
        if result.chains is None:
            facts["bits_per_byte"] = result.bits_per_byte
        if arguments.reasoning:
            chance = chance_of(Path(config.data.paths[0]))
            chains = {name: of.chains for name, of in results.items() if of.chains is not None}
            print(table(chains, chance))
            facts["reasoning"] = {name: of.record() for name, of in chains.items()}
            facts["chance"] = chance
        if arguments.period is not None:
            losses, _ = phase_losses(model, batches(source), arguments.period, device)
            seen = losses[~np.isnan(losses)]
            print(f"loss by phase, position mod {arguments.period}: {' '.join(f'{loss:.3f}' for loss in seen)}")
            if seen.min() > 0:
                print(f"  the worst phase has {seen.max() / seen.min():.3f} times the loss of the best")
            facts["loss_by_phase"] = seen.tolist()
        if arguments.cloze is not None:
            score = cloze(model, tokenizer, items_of(Path(config.data.paths[0]), split, arguments.cloze))
            print(f"cloze: {score}")
            facts["cloze"] = asdict(score)
        print(json.dumps(facts))


def _longer(config: RunConfig, test: SampleSource) -> dict[str, SampleSource]:
    """The problems beyond those trained on, if there are any and the model can read them.

    Raises `UserError` if the run's data are no problems.
    """
    if not test.labelled:
        raise UserError(
            f"--reasoning: {', '.join(config.data.paths)} holds text, not problems with chains; train on a folder that "
            f"`python -m data_prep reasoning` made"
        )
    if not has_beyond(config):
        return {}
    try:
        return {BEYOND: open_beyond(config)}
    except TooLongError as error:
        print(f"{BEYOND} is left out: {error}")
        return {}


if __name__ == "__main__":
    main()
