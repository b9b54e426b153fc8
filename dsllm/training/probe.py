"""What a model says on fixed held-out samples, before and after a structural event.

                 before                 after
    loss         4.1523190              4.1523190         nats per token, over all probe samples
    logits       (P, V)                 (P, V)            at P positions of the first sample

Every rank looks at all of the samples, so the figures are the same for every number of ranks.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsllm.data.batches import EvaluationBatch
from dsllm.data.files import write_atomically
from dsllm.errors import CheckpointError
from dsllm.json_file import parse_json
from dsllm.training.evaluation import evaluate

POSITIONS = 16
TOKENS = 256
"""Whole logits of more than these would be hundreds of megabytes with a large vocabulary."""


@dataclass(frozen=True)
class Probe:
    """What one model said, and what its arithmetic depended on."""

    loss: float
    """Nats per token."""
    logits: Tensor
    """(P, V) fp32 on the CPU."""
    samples: int
    micro_batch_size: int
    """What it was asked on: who compares has to ask on the same."""
    conditions: dict[str, Any]
    """Processor, threads, precision …: with others, the last bits may differ."""

    def save(self, path: Path) -> None:
        facts = json.dumps({**vars(self), "logits": None})
        file = io.BytesIO()
        np.savez(file, logits=self.logits.numpy(), facts=np.array(facts))
        write_atomically(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Probe":
        """Raises `CheckpointError` if it cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as file:
                facts = parse_json(str(file["facts"]))
                return cls(**{**facts, "logits": torch.from_numpy(file["logits"])})
        except Exception as error:  # zipfile, zlib and numpy each have kinds of their own for a damaged file
            raise CheckpointError(
                f"{path}: cannot be read ({error}); remove it and the newest checkpoint to repeat the event of that one"
            ) from None


@dataclass(frozen=True)
class Difference:
    """How far a model's words moved."""

    loss: float
    """After minus before, nats per token."""
    kl: float
    """Mean KL(before ‖ after) over the positions, nats."""
    logit: float
    """Largest change of any logit."""

    @classmethod
    def of(cls, before: Probe, after: Probe) -> "Difference":
        p, q = (F.log_softmax(probe.logits.double(), dim=-1) for probe in (before, after))
        kl = F.kl_div(q, p, log_target=True, reduction="none").sum(dim=-1).mean()
        return cls(after.loss - before.loss, float(kl), float((after.logits - before.logits).abs().max()))


def take_probe(
    engine: Any,
    batches: Iterable[EvaluationBatch],
    token_bytes: np.ndarray,
    device: torch.device,
    conditions: dict[str, Any],
) -> Probe:
    """Ask the engine's model; every rank of a ZeRO-3 engine must ask with the same batches."""
    batches = list(batches)
    engine.eval()
    result = evaluate(engine, batches, token_bytes, device)
    assert result is not None
    tokens = torch.from_numpy(batches[0].tokens[:1, :-1][:, :TOKENS].copy()).to(device)
    ids = batches[0].document_ids
    documents = None if ids is None else torch.from_numpy(ids[:1, :TOKENS].copy()).to(device)
    with torch.no_grad():
        logits = engine(tokens, document_ids=documents).logits[0]  # (T, V)
    chosen = torch.linspace(0, logits.shape[0] - 1, min(POSITIONS, logits.shape[0]), device=device).round().long()
    samples = sum(int(batch.valid.sum()) for batch in batches)
    return Probe(result.loss, logits[chosen].float().cpu(), samples, len(batches[0].tokens), conditions)


def conditions_of(device: torch.device, precision: str, ranks: int = 1) -> dict[str, Any]:
    """What the last bits of a model's answer depend on besides the model."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{device.type} {name}",
        "precision": precision,
        "ranks": ranks,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
