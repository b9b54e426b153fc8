"""What more context is worth to the models of conv_quality.py: the same tokens scored behind 256, 1,024 and 4,096.

    python benchmarks/conv_contexts.py [--contexts 256 1024 4096] [--samples 128]

Each stretch of the test split has the length of the longest context; its last 256 bytes are what is scored, whatever
the context, and a context of T ends with them too. So a column differs from the next by nothing but how far back a
model could look. They were trained at a context of 1,024: what stands under a longer one is behind their training.
Loss by phase is that of position t mod the product of strides (16 where a model has none), worst phase over best.

Reads benchmarks/results/conv_quality.json and the checkpoints of its runs (runs/conv_quality, not in the repository).
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

from dsllm.data.batches import evaluation_batches
from dsllm.errors import user_errors_exit
from dsllm.models.language_model import LanguageModel
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.loading import load_model
from dsllm.training.sources import open_split, resolve_vocabulary

SCORED, PERIOD = 256, 16


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


def phase_ratio(nats: torch.Tensor) -> float:
    """The mean loss of the worst phase over that of the best."""
    phases = nats.view(len(nats), -1, PERIOD).mean((0, 1))
    return (phases.max() / phases.min()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--samples", type=int, default=128, help="stretches of the test split")
    parser.add_argument("--work", type=Path, default=Path("runs/conv_quality"))
    arguments = parser.parse_args()
    with user_errors_exit():
        arms = json.loads((report.RESULTS / "conv_quality.json").read_text())["arms"]
        found: dict[str, Any] = {}
        tokens = None
        for arm, facts in arms.items():
            found[arm] = {str(context): {"bits_per_byte": [], "phase_ratio": []} for context in arguments.contexts}
            for seed in facts["seeds"]:
                run = arguments.work / seed["key"]
                tokens = stretches(run, max(arguments.contexts), arguments.samples) if tokens is None else tokens
                model = load_model(find_checkpoint(run).path).eval()
                for context in arguments.contexts:
                    nats = losses(model, tokens, context)
                    found[arm][str(context)]["bits_per_byte"].append(nats.mean().item() / math.log(2))
                    found[arm][str(context)]["phase_ratio"].append(phase_ratio(nats))
            print(arm, found[arm], flush=True)
    rows = []
    for arm, by_context in found.items():
        cells = []
        for figures in by_context.values():
            bits, ratios = figures["bits_per_byte"], figures["phase_ratio"]
            cells.append(f"{statistics.fmean(bits):.3f} ± {statistics.stdev(bits):.3f}")
            cells.append(f"{statistics.fmean(ratios):.3f}")
        rows.append([arm, *cells])
    header = ["arm"]
    for context in arguments.contexts:
        header += [f"bits per byte, {context:,}", "worst phase / best"]
    about = report.machine("torch")
    text = (
        f"The last {SCORED} bytes of {arguments.samples} stretches of the test split, the same behind every context; "
        f"models of conv_quality.md, trained at 1,024; mean ± sd of {len(facts['seeds'])} seeds; commit "
        f"{about['commit']}, {about['date']}.\n\n{report.table(header, rows)}"
    )
    facts = {"machine": about, "samples": arguments.samples, "arms": found}
    report.write("conv_contexts", facts, text)


if __name__ == "__main__":
    main()
