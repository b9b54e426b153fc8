"""Training that grows the model on its way: the loop is `BaseTrainer`'s, growth happens between two steps.

    step 50 ─▶ decide ─▶ save step_00000050 ─▶ probe ─▶ plan ─▶ write step_00000050.01 ─▶ Reinitialise
                                                                                               │ the process begins anew
    step 51 ◀─ go on ◀─ gradients ◀─ verify: probe, tensors, groups ◀─ engine ◀─ load step_00000050.01

Nothing live is changed: a growth event writes a checkpoint of another model, and the run resumes from it as it would
after a kill. So a kill anywhere on the way is nothing special, and neither is another number of ranks after it.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsllm.config import GrowthConfig, RunConfig
from dsllm.errors import CheckpointError, ConfigError
from dsllm.growth.check import budget_of, growth_problems
from dsllm.growth.decisions import OperatorChoice, Phase, Point, Policy, Refused, State, decide
from dsllm.growth.merge import merge_plan
from dsllm.growth.parts import resolve
from dsllm.growth.phases import Action, GrowNow, MergeNow, RaceNow, TrainOn, Wait, next_action
from dsllm.growth.plan import as_growable, make_plan
from dsllm.models.growable import GrowableConfig
from dsllm.registry import OPERATORS, POLICIES
from dsllm.section import raise_problems
from dsllm.training.checkpoints import checkpoint_name
from dsllm.training.evaluation import Evaluation
from dsllm.training.growing import GrowingTrainer, Position
from dsllm.training.growth_state import Decisions, GrowthState, Race
from dsllm.training.ledger import Spent
from dsllm.training.rates import Outcome
from dsllm.training.receipt import Receipt
from dsllm.training.sources import MicroBatch
from dsllm.training.watch import Watch
from dsllm.training.world import World


class ProgressiveTrainer(GrowingTrainer):
    """Trains a model that grows as the `growth` section says; see `BaseTrainer` for the rest."""

    grows = True

    def __init__(self, config: RunConfig, world: World, fresh: bool = False):
        self.growth: GrowthConfig = config.growth or GrowthConfig()
        self.grown = GrowthState()
        self.ratios: list[float] = []
        self._told: set[tuple[int, str]] = set()
        super().__init__(config, world, fresh)
        self.probe_samples = self.growth.probe_samples
        self.policy, self.policy_options = self._policy()
        self.budget = budget_of(as_growable(self.config.model), self.growth, *self._length())
        self.decisions = Decisions(self.run_dir, self.growth)
        self.grown.lineage = self.grown.lineage or [*range(self.section.distinct_blocks)]
        self.watch = Watch(self.model, self.tensors, self.grown.lineage)  # type: ignore[arg-type]
        self._open_phase()

    @property
    def section(self) -> GrowableConfig:
        """The model as it stands."""
        return as_growable(self.model_config)

    def check(self) -> None:
        problems = growth_problems(
            as_growable(self.config.model), self.growth, *self._length(), self.config.train.eval_every
        )
        raise_problems(problems)

    def state(self) -> dict[str, Any]:
        return self.grown.as_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        # A checkpoint of a trainer that does not grow has none: growth begins with it.
        self.grown = GrowthState.from_dict(state) if state else self.grown

    def lr(self) -> float:
        """The schedule's, scaled and warmed up again as the growth section says."""
        rate = super().lr() * self.grown.lr_scale
        since = self.progress.tokens + self.tokens_per_step - self.grown.grown_at_tokens
        if self.grown.stage and since < self.growth.rewarm_tokens:
            rate *= since / self.growth.rewarm_tokens
        return rate

    def before_step(self) -> None:
        super().before_step()
        if self.grown.race is not None:
            if self.progress.step >= self.grown.race.until:
                self._end_branch(self.grown.race)
            return
        action = self.world.from_main(self._decide)
        if not isinstance(action, TrainOn):
            self._perform(action, self.here())

    def loss(self, batch: MicroBatch) -> torch.Tensor:
        if not self._watching() or self.ratios:
            return super().loss(batch)
        with self.watch.residuals() as ratios:
            loss = super().loss(batch)
        self.ratios = ratios
        return loss

    def before_update(self) -> None:
        super().before_update()
        if self._watching():
            layers = self.watch.look(self.ratios)
            self.ratios = []
            if self.monitor is not None:
                layers.write(self.monitor, self.progress)

    def after_step(self, outcome: Outcome) -> None:
        spent = self.grown.ledger.phases[-1]
        spent.steps += 1
        spent.tokens += self.tokens_per_step
        spent.flops += self.tokens_per_step * self.flops_per_token
        spent.seconds += time.perf_counter() - outcome.begun

    def after_evaluation(self, split: str, result: Evaluation) -> None:
        if split == "val":
            seen = self._seen_loss() if self.policy.reads_seen_losses else None
            self.grown.history.append(Point(self.progress.step, self.progress.tokens, result.loss, seen))

    def save(self) -> Path:
        if self.grown.race is not None and self.base is not None:
            return self.base.folder  # a branch is no place to go on from: its beginning is
        return super().save()

    def verified(self, receipt: Receipt) -> None:
        spent = self.grown.ledger.phases[-1]
        spent.growth_seconds += sum(receipt.seconds.values())
        spent.growth_bytes += receipt.bytes_written
        probed = 2 * self.growth.probe_samples * self.config.model.context * self.world.size  # by every rank
        spent.probe_flops += probed * self.model.forward_flops_per_token(self.config.model.context)

    def comes_back(self) -> bool:
        return self.grown.race is not None  # to the race's beginning, for the next branch

    def train(self) -> None:
        if self.monitor is not None and self.progress.step == 0:
            notes = list(self.policy.notes(self.budget, **self.policy_options))
            if self.config.train.schedule == "cosine":
                notes.append("train.schedule = cosine decays throughout, so no growth is refused for it; wsd is fairer")
            notes += self._refusals()
            for note in notes:
                print(f"note: {note}", flush=True)
        super().train()

    def _refusals(self) -> Iterator[str]:
        """Growth that the policy will ask for while the rate decays, and not get."""
        key = "decay_share" if self.config.train.decay_tokens is None else "decay_tokens"
        for step in map(self.budget.step_at, self.policy.timetable(self.budget, **self.policy_options) or ()):
            if self.schedule.decaying((step + 1) * self.tokens_per_step):
                yield (
                    f"no growth at step {step:,}: the learning rate decays there; let it grow earlier, or take a "
                    f"smaller train.{key}"
                )

    def finish(self) -> None:
        if self.monitor is not None:
            table = self.grown.ledger.table()
            self.monitor.record("ledger", self.progress, self.grown.ledger.as_dict())
            self.monitor.text("growth/ledger", self.progress, f"```\n{table}\n```")
            print(table, flush=True)

    # When to grow.

    def _decide(self) -> Action:
        """What happens now, on rank 0: what was decided here before, or what the policy says."""
        here = checkpoint_name(self.progress.step)
        if self.base is not None and self.base.folder.name.startswith(here):
            here = self.base.folder.name  # what an earlier event of this step made
        known = self.decisions.find(here)
        if known is not None:
            return known
        action = self._asked(self._state())
        if not isinstance(action, TrainOn):
            self.decisions.note(here, action)
        if not isinstance(action, TrainOn) or isinstance(action, Wait):
            self._tell(action.verb, action.reason)
        return action

    def _asked(self, state: State) -> Action:
        if self.grown.refused is not None:
            return TrainOn(self.grown.refused)
        decision = decide(self.policy, self.policy_options, self.grown.history, state)
        if isinstance(decision, Refused):
            self._tell("growth refused", decision.reason)
        due = self.policy.timetable(self.budget, **self.policy_options) or ()
        end = due[state.stage] if state.stage < len(due) else None
        return next_action(self.growth.preset, self.section, state, decision, end, self.growth.diverge_share)

    def _state(self) -> State:
        return State(
            budget=self.budget,
            step=self.progress.step,
            tokens=self.progress.tokens,
            stage=self.grown.stage,
            grown_at_step=self.grown.grown_at_step,
            grown_at_tokens=self.grown.grown_at_tokens,
            phase=self.grown.phase,
            layers=self.section.n_layer,
            blocks=self.section.distinct_blocks,
            decaying=self.schedule.decaying(self.progress.tokens),
        )

    # The event itself.

    def _perform(self, action: Action, position: Position) -> None:
        if isinstance(action, MergeNow):
            plan = merge_plan(
                as_growable(position.model),
                position.identity,
                self.growth.optimizer_state,
                position.progress.step,
            )
            self.carry_out(position, plan, self._state_of(position, phase=action.phase))
        elif isinstance(action, GrowNow):
            self._grow(position, action.phase, action.operator or self.growth.operator, action.factor)
        elif isinstance(action, RaceNow):
            until = min(position.progress.step + action.steps, self.config.train.steps - 1)
            self._branch(position, Race(position.name, action.phase, list(action.candidates), until))

    def _grow(
        self,
        position: Position,
        phase: Phase,
        choice: OperatorChoice,
        factor: int | None = None,
        race: Race | None = None,
    ) -> None:
        """Grow from a checkpoint; where the operator does not fit the model, note why and come back."""
        operator, options, problems = resolve(OPERATORS, choice, "growth.operator")
        raise_problems(problems)
        assert operator is not None
        model, before = as_growable(position.model), GrowthState.from_dict(position.state)
        factor = factor or self.growth.factors(before.stage + 1)[-1]
        diverging = phase == "diverge" and operator.takes_adapters
        try:
            growth = operator(model, factor, **options)
            plan = make_plan(
                growth,
                model,
                position.identity,
                self.growth.optimizer_state,
                self.growth.lora if diverging else None,
                position.progress.step,
            )
        except (ConfigError, CheckpointError) as error:
            self.grown.refused = str(error)
            self._tell("growth refused", str(error))
            return
        descend = max(before.lineage) + 1
        lineage = [
            descend + block if source is None else before.lineage[source] for block, source in enumerate(growth.sources)
        ]
        state = self._state_of(
            position,
            stage=before.stage + 1,
            phase=phase if diverging or phase == "full" else "full",
            grown_at_step=position.progress.step,
            grown_at_tokens=position.progress.tokens,
            lr_scale=before.lr_scale * self.growth.lr_scale,
            lineage=lineage,
            race=race,
        )
        self.carry_out(position, plan, state)

    @staticmethod
    def _state_of(position: Position, **changes: Any) -> dict[str, Any]:
        return replace(GrowthState.from_dict(position.state), **changes).as_dict()

    # Races: a branch for each candidate, each from the same checkpoint.

    def _branch(self, position: Position, race: Race) -> None:
        """Grow by the next candidate that fits; come back if there is none left."""
        while len(race.losses) < len(race.candidates):
            self._grow(position, race.phase, race.candidates[len(race.losses)], race=race)
            race = replace(race, losses=[*race.losses, math.inf])

    def _end_branch(self, race: Race) -> None:
        """Note how the branch did; then the next one, or growth by the best of them."""
        samples = self.config.train.eval_samples
        split = self.splits.get("val", self.splits["train"])
        result = self.judge.measure(split, samples, self.progress.step)
        if result is None:
            return  # a signal: the loop ends, and the branch is run again
        origin = self.position(race.origin)
        spent = self.grown.ledger.phases[-1]
        cost = self.progress.flops - origin.progress.flops + spent.probe_flops
        race = replace(
            race,
            losses=[*race.losses, result.loss if math.isfinite(result.loss) else math.inf],
            flops=race.flops + cost,
            seconds=race.seconds + spent.seconds + spent.growth_seconds,
        )
        if self.monitor is not None:
            name = _in_words(race.candidates[len(race.losses) - 1])
            print(f"race: {name} has a loss of {result.loss:.4f} at step {self.progress.step}", flush=True)
        self._branch(origin, race)
        race.losses += [math.inf] * (len(race.candidates) - len(race.losses))
        best = race.candidates[race.losses.index(min(race.losses))]
        state = GrowthState.from_dict(origin.state)
        state.ledger.phases[-1].lost_flops += race.flops
        state.ledger.phases[-1].lost_seconds += race.seconds
        progress = replace(origin.progress, flops=origin.progress.flops + race.flops)
        self._grow(replace(origin, progress=progress, state=state.as_dict()), race.phase, best)

    # The parts.

    def _policy(self) -> tuple[Policy, dict[str, Any]]:
        policy, options, problems = resolve(POLICIES, self.growth.policy, "growth.policy")
        raise_problems(problems)
        assert policy is not None
        return policy, options

    def _length(self) -> tuple[int, int]:
        """Tokens and steps of the whole run."""
        train = self.config.train
        return train.steps * train.global_batch_size * self.config.model.context, train.steps

    def _open_phase(self) -> None:
        """Begin a phase in the ledger, unless the last one goes on."""
        phases, grown = self.grown.ledger.phases, self.grown
        if phases and (phases[-1].stage, phases[-1].phase) == (grown.stage, grown.phase):
            return
        trainable = self.trainable_parameters
        size = self.tensors.optimizer_bytes()
        section = self.section
        phases.append(Spent(grown.stage, grown.phase, section.n_layer, section.distinct_blocks, trainable, size))

    def _watching(self) -> bool:
        every = self.growth.watch_every
        return every > 0 and (self.progress.step + 1) % every == 0

    def _seen_loss(self) -> float | None:
        """The loss on training samples of up to four earlier steps."""
        size = self.config.train.global_batch_size
        batches = self.progress.consumed_samples // size
        losses = []
        self.engine.eval()
        with torch.no_grad():
            for number in sorted({batches * part // 4 for part in range(4)}) if batches else []:
                batch = self.loader.again(number * size)
                for micro in self._micro_batches(batch):
                    losses.append(float(super().loss(micro)))
        if not losses:
            return None
        return float(self.world.total(torch.tensor(losses, dtype=torch.float64).mean())) / self.world.size

    def _tell(self, event: str, reason: str) -> None:
        """Record and print that something happened or did not, once in a stage and phase."""
        told = (len(self.grown.ledger.phases), event)
        if self.monitor is not None and told not in self._told:
            self._told.add(told)
            self.monitor.event(self.progress, event, reason=reason)
            print(f"step {self.progress.step}: {event}: {reason}", flush=True)


def _in_words(choice: OperatorChoice) -> str:
    """`stack`, or `dropin (steps 50)`."""
    if isinstance(choice, str):
        return choice
    options = ", ".join(f"{key} {value}" for key, value in choice.items() if key != "name")
    return f"{choice['name']} ({options})" if options else str(choice["name"])
