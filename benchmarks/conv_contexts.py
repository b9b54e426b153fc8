"""What more context is worth to the models of conv_quality.py: the same tokens scored behind 256, 1,024 and 4,096.

    python benchmarks/conv_contexts.py [--contexts 256 1024 4096] [--samples 128] [--seeds 1 2 3]

Each stretch of the test split has the length of the longest context; its last 128 bytes are what is scored, whatever
the context, and a context of T ends with them too: each is predicted from T - 127 to T bytes. So a line differs from
another of its arm by nothing but how far back a model could look. They were trained at a context of 1,024: what stands
under a longer one is behind their training. Loss by phase is that of position t mod 16, the product of mid's strides,
worst over best; a plain transformer has no phases, so its ratio is luck, which the others are to be held against.

Reads benchmarks/results/conv_quality.json, by default the arms of its first table. A run whose checkpoint is not in
--work is trained again first.
"""

import argparse
import json
import math
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from conv_quality import Trials

from dsllm.data.batches import evaluation_batches
from dsllm.errors import UserError, user_errors_exit
from dsllm.models.language_model import LanguageModel
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.loading import load_model
from dsllm.training.sources import open_split, resolve_vocabulary

SCORED, PERIOD = 128, 16
COUNTS = {"documented": "documented", "causal": "a causal kernel computes them"}


def stretches(run: Path, length: int, samples: int) -> torch.Tensor:
    """(samples, length + 1) tokens of the test split of the run's data, evenly spaced."""
    config, _ = resolve_vocabulary(find_checkpoint(run).config())
    longer = config.model_copy(update={"model": config.model.model_copy(update={"context": length})})
    batches = evaluation_batches(
        open_split(longer, "test"), samples=samples, micro_batch_size=1, rank=0, world_size=1, mask_documents=False
    )
    return torch.from_numpy(np.concatenate([batch.tokens for batch in batches]))


@torch.no_grad()
def losses(model: LanguageModel, tokens: torch.Tensor, context: int) -> torch.Tensor:
    """(N, SCORED) nats of the last tokens of stretches, each behind what a context of `context` holds."""
    found = []
    for part in tokens[:, -context - 1 :].split(4):
        logits = model.head(model.hidden(part[:, :-1])[:, -SCORED:]).float()
        found.append(F.cross_entropy(logits.flatten(0, 1), part[:, -SCORED:].flatten(), reduction="none"))
    return torch.cat(found).view(-1, SCORED)


def by_phase(nats: torch.Tensor) -> list[float]:
    """Mean loss of each phase; contexts and the scored part are multiples of the period, so position 0 is phase 0."""
    return nats.view(len(nats), -1, PERIOD).mean((0, 1)).tolist()


def measure(run: Path, tokens: torch.Tensor, contexts: list[int]) -> dict[str, dict[str, Any]]:
    """By context: nats per token, and by phase."""
    model = load_model(find_checkpoint(run).path).eval()
    found = {context: losses(model, tokens, context) for context in contexts}
    return {str(c): {"nats": nats.mean().item(), "phases": by_phase(nats)} for c, nats in found.items()}


def rows(found: dict[str, list[dict[str, dict[str, Any]]]], contexts: list[int]) -> list[list[str]]:
    """A line for each context and arm. `found`: by arm and seed, what `measure` gives."""
    lines = []
    for context in contexts:
        for arm, seeds in found.items():
            nats = [seed[str(context)]["nats"] for seed in seeds]
            phases = np.mean([seed[str(context)]["phases"] for seed in seeds], axis=0)
            spread = statistics.stdev(nats) if len(nats) > 1 else math.nan
            cells = [f"{statistics.fmean(nats):.3f} ± {spread:.3f}"]
            cells += [f"{statistics.fmean(nats) / math.log(2):.3f} ± {spread / math.log(2):.3f}"]
            lines.append([f"{context:,}", arm, *cells, f"{phases.max() / phases.min():.3f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--samples", type=int, default=128, help="stretches of the test split")
    parser.add_argument("--table", default="documented", choices=["documented", "causal"], help="how FLOPs count")
    parser.add_argument("--arms", help="separated by semicolons; by default all of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=Path, default=Path("data/bytes"))
    parser.add_argument("--work", type=Path, default=Path("runs/conv_quality"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs trained side by side")
    arguments = parser.parse_args()
    with user_errors_exit():
        for context in arguments.contexts:
            if context < 2 * SCORED or context % PERIOD:
                raise UserError(f"--contexts {context}: take a multiple of {PERIOD}, at least {2 * SCORED}")
        quality = json.loads((report.RESULTS / "conv_quality.json").read_text())
        trials = Trials(report.RESULTS / "conv_quality_runs.jsonl", arguments.work, arguments.data.absolute())
        table = quality[arguments.table]
        arms = table if arguments.arms is None else arguments.arms.split(";")
        for arm in arms:
            if arm not in table:
                raise UserError(f"--arms {arm}: not in the table; take {'; '.join(table)}")
        kept = [run for arm in arms for run in table[arm]["seeds"] if run["seed"] in arguments.seeds]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            folders = list(pool.map(trials.again, kept))
        tokens = stretches(folders[0], max(arguments.contexts), arguments.samples)
        found: dict[str, list[dict[str, dict[str, Any]]]] = {}
        for run, folder in zip(kept, folders, strict=True):
            found.setdefault(run["arm"], []).append(measure(folder, tokens, arguments.contexts))
            print(f"{run['arm']}, seed {run['seed']}: done", flush=True)
    about = report.machine("torch")
    header = ["context", "arm", "nats per token", "bits per byte", "worst phase / best"]
    text = (
        f"The last {SCORED} bytes of {arguments.samples} stretches of the test split, the same behind every context; "
        f"models of conv_quality.md, FLOPs counted as {COUNTS[arguments.table]}, trained at 1,024; mean ± sd of "
        f"{len(arguments.seeds)} seeds; torch {about['versions']['torch']}, commit {about['commit']}, "
        f"{about['date']}.\n\n"
        f"{report.table(header, rows(found, arguments.contexts))}"
    )
    report.write("conv_contexts", {"machine": about, "samples": arguments.samples, "arms": found}, text)


if __name__ == "__main__":
    main()
