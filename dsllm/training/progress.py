"""How far a run has come: what its checkpoints remember besides the weights and the optimizer."""

from dataclasses import dataclass


@dataclass
class Progress:
    """Counters since the run began, the same on every rank."""

    step: int = 0
    """Optimizer steps, skipped ones included."""
    consumed_samples: int = 0
    """The position in the data: the next global batch begins at this sample."""
    tokens: int = 0
    """Tokens trained on."""
    flops: float = 0.0
    """Training FLOPs by the model's formula, recomputation not counted."""
    skipped: int = 0
    """Steps whose update was skipped; see `guard`."""

    def advance(self, *, samples: int, tokens: int, flops: float, applied: bool) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.consumed_samples += samples
        self.tokens += tokens
        self.flops += flops
        self.skipped += not applied
