"""What a finished run comes to: everything that a comparison says of it, and nothing that is large.

RUN/                    →  RunRecord  →  NAME.json        so that a study goes on where the runs are not
config.yaml
metrics.jsonl
checkpoints/latest
"""

import json
import statistics
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsllm.comparison.spending import Spent, step_seconds
from dsllm.config import ModelConfig, RunConfig
from dsllm.data.files import os_errors_named, write_atomically
from dsllm.data.problems import chance_of
from dsllm.errors import ConfigError, UserError
from dsllm.models import skeleton
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.monitor import damaged_lines, read_metrics
from dsllm.training.reasoning import ChainAccuracy
from dsllm.training.sources import BEYOND

UNRECORDED = "a machine that was not recorded"
"""What stands for the machine of a run by an older dsllm."""
LAST = 0.1
"""Share of the steps at the end over which the final training loss is the mean."""


class Diverged(UserError):
    """A run whose test loss is no number."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(_Part):
    """A loss, and what had been spent on it."""

    tokens: int
    flops: float
    seconds: float
    """Of training steps and growth events; not of evaluations and checkpoints."""
    loss: float
    area: float | None = None
    """Of problems: mean accuracy over chain lengths."""


class Growth(_Part):
    """A structural event, and what had been spent when it was over."""

    tokens: int
    flops: float
    seconds: float
    """Of training steps and growth events, its own included."""
    operator: str


class Scored(_Part):
    """What a test loss is of: it can be held against another only if all of this is the same."""

    data: str
    """A hash of the training tokens; a folder's splits come of one preparation."""
    tokenizer: str
    """Hash of the vocabulary."""
    tokenizer_name: str
    objective: str
    context: int
    """Of a sample."""
    tokens: int
    """Targets scored."""
    validation_tokens: int
    """Targets scored in training; 0 if none were."""


class RunRecord(_Part):
    """One run."""

    name: str = Field(pattern=r"^[^/\\\x00-\x1f]+$")
    """The run's folder."""
    group: str = Field(pattern=r"^[^/\\\x00-\x1f]*$")
    """The folder around it; `--records` may name a file after both."""
    seed: int
    arm: dict[str, Any]
    """Its configuration but for the seed, and where it lies and is kept; with precision and ranks as they were. Runs of
    equal ones are an arm."""
    model: str
    layers: str
    heads: int
    widths: str
    micro_batch: int
    context: int
    steps: int
    tokens: int
    parameters: int
    flops: float
    trained_on: list[str] = []
    """The machines of rank 0, to which all seconds belong; none of runs by an older dsllm."""
    step_ms: float
    tokens_per_second: float
    memory_mib: float
    train_loss: float | None
    test_batches: int
    test_loss: float
    bits_per_byte: float
    scored: Scored
    accuracy: dict[str, float] = {}
    """Of problems: by the length of the chain, on test."""
    asked: dict[str, int] = {}
    chance: dict[str, float] = {}
    """What guessing is worth at these lengths."""
    beyond: dict[str, float] = {}
    """Of chains longer than those of `accuracy`, on split `beyond`."""
    asked_beyond: dict[str, int] = {}
    validation: list[Point]
    growth: list[Growth] = []
    divergence: dict[str, float] = {}
    """Of copies that came of one block, at the end: relative distances by pair."""
    prefill_ms: float | None = None
    decode_ms: float | None = None
    """Per token, the median."""
    inference_on: str | None = None
    """The machine of both."""
    damaged_lines: int = 0
    """Of metrics.jsonl, which are left out."""
    phase_losses: list[float] = []
    """By the place in the windows that models merge; see `dsllm.comparison.phases`."""

    @property
    def validation_loss(self) -> float | None:
        """On val at the end; None if it was never evaluated there."""
        return self.validation[-1].loss if self.validation else None

    @property
    def h90(self) -> float | None:
        """The longest chain up to which all lengths reach 0.9; see `dsllm.training.reasoning`."""
        return None if not self.asked else ChainAccuracy.of_shares(self.accuracy, self.asked).h90

    @property
    def area(self) -> float | None:
        """Mean accuracy over chain lengths."""
        return None if not self.asked else ChainAccuracy.of_shares(self.accuracy, self.asked).area

    @property
    def area_beyond(self) -> float | None:
        """Mean accuracy over chain lengths beyond those of `accuracy`."""
        return None if not self.beyond else ChainAccuracy.of_shares(self.beyond, self.asked_beyond).area

    @property
    def next_accuracy(self) -> float | None:
        """At the first chain length beyond those of `accuracy`."""
        return None if not self.beyond else self.beyond[str(min(map(int, self.beyond)))]

    @property
    def key(self) -> str:
        """Equal for the runs of an arm."""
        return sha256(json.dumps(self.arm, sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Of a run's folder, or from the file that `write` wrote.

        Raises:
            UserError: neither, or a run that has not finished or never looked at its test split.
        """
        if path.is_file():
            with os_errors_named(path):
                content = path.read_bytes()
            try:
                record = cls.model_validate_json(content)
            except ValidationError as error:
                first = error.errors()[0]
                what = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
                raise UserError(
                    f"{path}: no record of a run ({what}); give a run's folder, or a file that --records wrote"
                ) from None
            return record.model_copy(update={"arm": completed(record.arm)})
        return _of_run(path)

    def of_data(self, data: str) -> "RunRecord":
        """As of other data, where an arm's seeds each have their own."""
        arm = {**self.arm, "data": {**self.arm["data"], "path": data}}
        return self.model_copy(update={"arm": arm, "scored": self.scored.model_copy(update={"data": data})})

    def write(self, path: Path) -> None:
        write_atomically(path, (self.model_dump_json(indent=1) + "\n").encode())


def _of_run(run: Path) -> RunRecord:
    if not (run / "config.yaml").exists():
        files = ", or the files in it" if any(run.glob("*.json")) else ""
        raise UserError(f"{run}: no run, config.yaml is not in it; give folders that launch/train.py wrote{files}")
    config = RunConfig.from_file(run / "config.yaml")
    records = read_metrics(run)
    train = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    val, on_test, beyond = ([r for r in evaluations if r["split"] == of] for of in ("val", "test", BEYOND))
    tests = [record for record in on_test if record["step"] >= config.train.steps]
    if not tests or not train:
        raise UserError(
            f"{run}: not finished, there is no evaluation on test at step {config.train.steps}; the command that "
            f"trained it goes on (with train.test_samples other than 0)"
        )
    checkpoint = find_checkpoint(run)
    test, model = tests[-1], checkpoint.config().model
    if "samples" not in test:
        raise UserError(f"{run}: evaluated by an older dsllm; train its last steps again with this one")
    if test["loss"] is None:
        raise Diverged(f"{run}: its test loss is no number, the run has diverged; leave it out, and say so")
    asked: dict[str, int] = test.get("asked", {})
    after = next((record for record in beyond if record["step"] == test["step"]), None)
    longer = {k: count for k, count in after["asked"].items() if k not in asked} if after else {}
    validation = [record for record in val if record["loss"] is not None]
    growth = [record for record in records if record["kind"] == "growth"]
    spent = Spent(train, growth, checkpoint.progress)
    seconds = step_seconds(train, records, checkpoint.progress.step)
    where = run.resolve()
    origin = checkpoint.origin
    data = sha256(json.dumps(_data(origin.order)).encode()).hexdigest()
    return RunRecord(
        name=where.name,
        group=where.parent.name,
        seed=config.train.seed,
        arm=arm_of(config, data) | {"ranks": origin.world_size, "precision": origin.precision},
        **_shape(model),
        micro_batch=config.train.micro_batch_size,
        context=model.context,
        steps=checkpoint.progress.step,
        tokens=checkpoint.progress.tokens,
        parameters=skeleton(model).count_parameters(),
        flops=checkpoint.progress.flops + _probes(records),
        trained_on=sorted({r.get("machine", UNRECORDED) for r in records if r.get("event") in ("start", "resume")}),
        step_ms=1000 * seconds,
        tokens_per_second=checkpoint.progress.tokens / checkpoint.progress.step / seconds,
        memory_mib=max(record["memory_bytes"] for record in train) / 2**20,
        train_loss=_final_loss(train, config.train.steps),
        test_batches=-(-test["samples"] // (config.train.micro_batch_size * origin.world_size)),
        test_loss=test["loss"],
        bits_per_byte=test["bits_per_byte"],
        scored=Scored(
            data=data,
            tokenizer=origin.tokenizer.vocab_sha256,
            tokenizer_name=origin.tokenizer.name,
            objective=("labels of problems" if "accuracy" in test else "next token")
            + (", documents masked" if config.data.mask_documents else ""),
            context=model.context,
            tokens=test["scored_tokens"],
            validation_tokens=validation[-1]["scored_tokens"] if validation else 0,
        ),
        accuracy=test.get("accuracy", {}),
        asked=asked,
        chance={k: share for k, share in chance_of(Path(config.data.paths[0])).items() if k in asked | longer},
        beyond={length: after["accuracy"][length] for length in longer} if after else {},
        asked_beyond=longer,
        validation=[Point(**spent(record), loss=record["loss"], area=record.get("area")) for record in validation],
        growth=[Growth(**spent(record), operator=record["operator"]) for record in growth],
        damaged_lines=len(damaged_lines(run)),
        divergence={
            pair: value
            for pair, value in next((r["divergence"] for r in reversed(records) if r["kind"] == "layers"), {}).items()
            if value is not None
        },
    )


def _probes(records: Sequence[dict[str, Any]]) -> float:
    """FLOPs of comparing models before and after growth events, which are no training but are spent."""
    ledgers = [record for record in records if record["kind"] == "ledger"]
    return float(sum(phase["probe_flops"] for ledger in ledgers[-1:] for phase in ledger["phases"]))


def _final_loss(train: Sequence[dict[str, Any]], steps: int) -> float | None:
    """The mean of the records of the last tenth of the steps, or the last one's; None if that is no number."""
    last = [record for record in train if record["step"] > (1 - LAST) * steps] or [train[-1]]
    losses = [record["loss"] for record in last]
    return None if None in losses else statistics.fmean(losses)


def arm_of(config: RunConfig, data: str) -> dict[str, Any]:
    """What a run is, apart from its seed; not where its data lie, what it says of itself and how often it is saved."""
    values = config.model_dump(mode="json")
    for section in ("run_dir", "monitor"):
        del values[section]
    for key in ("seed", "precision", "checkpoint_every", "keep_checkpoints"):
        del values["train"][key]
    values["data"]["path"] = data
    return values


def completed(arm: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of keys that have come since it was written; as it is where this dsllm cannot read it."""
    origin = {key: arm[key] for key in ("ranks", "precision") if key in arm}
    try:
        config = RunConfig.from_values(
            {**{key: arm[key] for key in arm if key not in origin}, "run_dir": "runs/of_a_record"}
        )
    except ConfigError:
        return arm
    return arm_of(config, arm["data"]["path"]) | origin


def _data(order: dict[str, Any]) -> Any:
    return next(value for key, value in order.items() if key.startswith("data.path"))


def _shape(model: ModelConfig) -> dict[str, Any]:
    """Layers, heads and widths in words, level by level."""
    layers, widths = zip(*model.levels, strict=True)
    shown = {"layers": " + ".join(map(str, layers)), "widths": ", ".join(map(str, widths))}
    return {"model": model.name, "heads": model.n_head, **shown}
