"""What happens now: a preset, the phase of the stage and the policy's answer give the next structural event.

                         stage 0      stage 1                            stage 2
    no_diverge           full    │    full                          │    full
    diverge_only         full    │    diverge ───────────── merge   │    diverge ──────────────────
    diverge_consolidate  full    │    diverge ─ merge ─ consolidate │    diverge ─ merge ─ consolidate
                               grow           at 25 %             grow

A growth that starts with diverging freezes the blocks under fresh adapters; a merge ends it. One event at a time: where
a model that has adapters is to grow, it is merged, and asked again it grows. No live adapter, mixture or half-open gate
ever crosses a growth event.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dsllm.growth.decisions import Decision, Grow, LeaveDiverge, Merge, OperatorChoice, Phase, Race, State
from dsllm.models.growable import GrowableConfig

Preset = Literal["diverge_only", "diverge_consolidate", "no_diverge"]


@dataclass(frozen=True)
class Action:
    """What the trainer does, and why."""

    reason: str
    verb: ClassVar[str] = "train on"


@dataclass(frozen=True)
class TrainOn(Action):
    """No structural event."""


@dataclass(frozen=True)
class Wait(TrainOn):
    """No structural event yet, though one is wanted."""

    verb: ClassVar[str] = "wait"


@dataclass(frozen=True)
class MergeNow(Action):
    """Merge, and train on in `phase`."""

    verb: ClassVar[str] = "merge"
    phase: Phase


@dataclass(frozen=True)
class GrowNow(Action):
    """Grow, and train on in `phase`; in `diverge` with fresh adapters. What is None comes from the configuration."""

    verb: ClassVar[str] = "grow"
    phase: Phase
    factor: int | None = None
    operator: OperatorChoice | None = None


@dataclass(frozen=True)
class RaceNow(Action):
    """Train a branch with each candidate, grown into `phase`, and ask the policy again with their losses."""

    verb: ClassVar[str] = "race"
    phase: Phase
    candidates: tuple[OperatorChoice, ...]
    steps: int


def next_action(
    preset: Preset,
    model: GrowableConfig,
    state: State,
    decision: Decision,
    stage_end: int | None = None,
    diverge_share: float = 0.25,
) -> Action:
    """The next structural event, or none.

    `stage_end`: tokens of the next growth event, where the policy knows it; else the stage may last to the run's end.
    `diverge_share`: of the stage's tokens, for the preset `diverge_consolidate`.
    """
    action = _wanted(preset, model, state, decision, stage_end, diverge_share)
    if model.gate is not None and model.gate.opening(state.step) < 1 and not isinstance(action, TrainOn):
        opened = model.gate.start + model.gate.steps
        return Wait(f"for the gates, which are open at step {opened:,}; then {action.verb}")
    return action


def _wanted(
    preset: Preset,
    model: GrowableConfig,
    state: State,
    decision: Decision,
    stage_end: int | None,
    diverge_share: float,
) -> Action:
    if isinstance(decision, Grow | Race) and model.unsettled:
        return MergeNow(f"merge before growing: {decision.reason}", _phase_after_merge(state))
    phase: Phase = "full" if preset == "no_diverge" else "diverge"
    if isinstance(decision, Grow):
        return GrowNow(decision.reason, phase, decision.factor, decision.operator)
    if isinstance(decision, Race):
        return RaceNow(decision.reason, phase, decision.candidates, decision.steps)
    if isinstance(decision, Merge | LeaveDiverge) and model.lora is not None:
        return MergeNow(decision.reason, _phase_after_merge(state))
    if preset == "diverge_consolidate" and state.phase == "diverge" and model.lora is not None:
        leave = diverge_ends(state, stage_end, diverge_share)
        if state.tokens >= leave:
            return MergeNow(f"{diverge_share:.0%} of the stage is over at {leave:,} tokens", "consolidate")
    return TrainOn(decision.reason)


def diverge_ends(state: State, stage_end: int | None, share: float) -> int:
    """Tokens of the run after which the phase diverge of the present stage ends."""
    start = state.grown_at_tokens
    end = state.budget.tokens if stage_end is None else stage_end
    return start + round(share * (end - start))


def _phase_after_merge(state: State) -> Phase:
    return "consolidate" if state.phase == "diverge" else state.phase
