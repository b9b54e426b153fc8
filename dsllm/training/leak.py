"""An alarm for losses that are too good: does the model see the tokens that it is to predict?

    0.62 bits per byte from 12 M parameters              natural text does not come so cheap
    change tokens 65 … of a sample                       what is scored before, targets 0 … 64, must not move
    loss of targets 1 … 64: 0.431, then 7.912            it moved: the model leaks

A small model below 0.9 bits per byte has seen the future, or its text is repetitive, synthetic or known by heart. Which
of these it is the live model itself says, through its engine, at every ZeRO stage.
"""

from collections.abc import Callable
from typing import Any

import torch

from dsllm.data.batches import NO_TARGET, evaluation_batches
from dsllm.data.dataset import SampleSource

PARAMETERS, BITS_PER_BYTE = 50_000_000, 0.9
"""Below both the alarm goes off."""
SCORED = 64
"""Targets before a changed token that are looked at."""


class LeakAlarm:
    """Goes off when a small model's loss is too good; once for each answer that it finds."""

    def __init__(self, parameters: int, vocab_size: int, device: torch.device, mask_documents: bool = False):
        self.parameters, self.vocab_size, self.device = parameters, vocab_size, device
        self.mask_documents = mask_documents
        self._said: set[bool] = set()

    def after(self, model: Callable[..., Any], source: SampleSource, split: str, bits_per_byte: float) -> str | None:
        """What to say after an evaluation on a split, if there is anything to say; by every rank alike."""
        if self.parameters >= PARAMETERS or bits_per_byte >= BITS_PER_BYTE:
            return None
        positions, leaks = look_for_leaks(model, source, self.vocab_size, self.device, self.mask_documents)
        if bool(leaks) in self._said:
            return None
        self._said.add(bool(leaks))
        if source.labelled and not leaks:  # problems are synthetic, and may be solved
            return None
        if leaks:
            found = (
                f"THE MODEL SEES THE FUTURE: what it predicts before token {leaks[0]} of a sample depends on what "
                f"comes from there on (and so at {len(leaks)} of {len(positions)} places); its losses mean nothing"
            )
        else:
            found = (
                f"no leak was found (at {len(positions)} places of a sample nothing before the change moved): the text "
                f"is repetitive or synthetic, or known by heart"
            )
        return (
            f"leak alarm: {bits_per_byte:.3f} bits per byte on {split} with {self.parameters / 1e6:.1f} M parameters, "
            f"less than natural text takes; {found}"
        )


def look_for_leaks(
    model: Callable[..., Any], source: SampleSource, vocab_size: int, device: torch.device, mask_documents: bool = False
) -> tuple[list[int], list[int]]:
    """Change a sample's tokens from some place on: the places tried, and those where what is predicted before moved.

    `model` is called as a `LanguageModel` with targets, so that no logits are held, in eval mode, by every rank alike.
    """
    batch = next(
        evaluation_batches(source, samples=1, micro_batch_size=1, rank=0, world_size=1, mask_documents=mask_documents)
    )
    tokens = torch.from_numpy(batch.tokens).to(device)  # (1, T + 1)
    document_ids = None if batch.document_ids is None else torch.from_numpy(batch.document_ids).to(device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    generator = torch.Generator().manual_seed(0)
    others = torch.randint(1, vocab_size, inputs.shape, generator=generator).to(device)
    changed = (inputs + others) % vocab_size  # another token everywhere
    index = torch.arange(inputs.shape[1], device=device)
    positions, leaks = places(inputs.shape[1]), []
    with torch.no_grad():
        for place in positions:
            scored = targets.where((index >= place - SCORED) & (index < place), NO_TARGET)
            losses = [
                float(model(ids, targets=scored, document_ids=document_ids).loss)
                for ids in (inputs, inputs.where(index < place, changed))
            ]
            # The same sums of the same numbers: equal to the bit, but for kernels that split sums by what they find.
            if abs(losses[1] - losses[0]) > 1e-6 * max(1.0, losses[0]):
                leaks.append(place)
    return positions, leaks


def places(context: int) -> list[int]:
    """Tokens of a context to change: at, before and behind the ends of windows of usual sizes, and at its own end."""
    middle = context // 2
    usual = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, middle - 1, middle, middle + 1}
    return sorted(place for place in usual | {context - 2, context - 1} if 1 <= place < context)
