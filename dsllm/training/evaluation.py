"""Loss and bits per byte of a split: every sample once, the same figure for every number of ranks.

    bits per byte = sum of nats / (ln 2 · UTF-8 bytes of the scored text)

The bytes are those of the scored tokens themselves, so tokenizers and contexts can be compared; end-of-text has none.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dsllm.data.batches import NO_TARGET, EvaluationBatch
from dsllm.errors import DataError
from dsllm.models.head import logits_held
from dsllm.models.language_model import LanguageModel
from dsllm.training.reasoning import ChainAccuracy, count_answers


@dataclass(frozen=True)
class Evaluation:
    """What a split's samples cost."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    tokens: int
    """Tokens scored."""
    samples: int = 0
    """Samples that they were in."""
    chains: ChainAccuracy | None = None
    """Of problems: accuracy by the length of the chain."""

    @property
    def perplexity(self) -> float:
        """exp(loss), kept finite."""
        return math.exp(min(self.loss, 700.0))

    def __str__(self) -> str:
        if self.chains is not None:
            reached = f"H90 {self.chains.h90}, mean accuracy {self.chains.area:.3f}"
            return f"loss {self.loss:.4f} nats per label, {self.tokens:,} labels; {reached}"
        return f"loss {self.loss:.4f} nats per token, {self.bits_per_byte:.4f} bits per byte, {self.tokens:,} tokens"


def evaluate(
    model: Callable[..., Any],
    batches: Iterable[EvaluationBatch],
    token_bytes: np.ndarray,
    device: torch.device,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    stop: Callable[[], Any] = lambda: False,
) -> Evaluation | None:
    """Score batches with a model in eval mode.

    Args:
        model: called as a `LanguageModel` with input_ids, targets (B, T) and document_ids.
        token_bytes: (V,) UTF-8 bytes of each token, 0 for end-of-text.
        total: the sum of a tensor over all ranks; by default there is one rank.
        stop: asked before each batch; if it says so the evaluation is given up and None returned.
    """
    nats, scored, text_bytes, samples, answers = 0.0, 0, 0, 0, None
    with torch.no_grad():
        for batch in batches:
            if stop():
                return None
            targets = batch.targets
            counted = targets[targets != NO_TARGET]
            ids = torch.from_numpy(batch.tokens[:, :-1].copy()).to(device)
            wanted = torch.from_numpy(targets).to(device)
            documents = None if batch.document_ids is None else torch.from_numpy(batch.document_ids).to(device)
            if batch.depths is None:
                loss = model(ids, targets=wanted, document_ids=documents).loss
            else:
                logits = model(ids, document_ids=documents).logits.float()
                loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=NO_TARGET)
                said = logits.argmax(-1).cpu().numpy()
                found = count_answers(said, targets, np.where(batch.valid[:, None], batch.depths, 0))
                answers = found if answers is None else answers + found
            if counted.size:  # the mean over no targets is no number; the forward pass itself runs on all ranks alike
                nats += float(loss) * counted.size
            scored += counted.size
            samples += int(batch.valid.sum())
            text_bytes += int(token_bytes[counted].sum())
    sums = total(torch.tensor([nats, scored, text_bytes, samples], dtype=torch.float64)).tolist()
    if not sums[1]:
        raise DataError("evaluation: nothing is asked for in these samples; take more, or another split")
    chains = None if answers is None else ChainAccuracy.of(total(torch.from_numpy(answers)).numpy())
    bits = sums[0] / (math.log(2) * max(sums[2], 1))
    return Evaluation(sums[0] / sums[1], bits, int(sums[1]), int(sums[3]), chains)


def phase_losses(
    model: LanguageModel, batches: Iterable[EvaluationBatch], period: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The mean loss of predictions at position t by the phase t mod `period`, and how many there were.

    Both (period,), in nats per token and in tokens; NaN for a phase without any. Logits are held for a piece of the
    tokens at a time. A model whose positions are not alike, or that leaks, shows in it.
    """
    sums, counts = np.zeros(period), np.zeros(period, np.int64)
    with torch.no_grad():
        for batch in batches:
            tokens = torch.from_numpy(batch.tokens[batch.valid]).to(device)  # (B, T + 1)
            if not len(tokens):
                continue
            targets = torch.from_numpy(batch.targets[batch.valid]).to(device)
            ids = None if batch.document_ids is None else torch.from_numpy(batch.document_ids[batch.valid]).to(device)
            hidden = model.hidden(tokens[:, :-1], ids).flatten(0, 1)  # (B T, E)
            rows = max(1, logits_held(device) // model.vocab_size)
            losses = [
                F.cross_entropy(model.head(h).float(), target, reduction="none", ignore_index=NO_TARGET)
                for h, target in zip(hidden.split(rows), targets.flatten().split(rows), strict=True)
            ]
            by_position = torch.cat(losses).view(len(tokens), -1).double().sum(0).cpu().numpy()  # (T,)
            phases = np.arange(len(by_position)) % period
            np.add.at(sums, phases, by_position)
            np.add.at(counts, phases, (targets != NO_TARGET).sum(0).cpu().numpy())
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts
