"""What convolution attention costs in quality: bits per byte at equal training FLOPs, against GPT-2, on real text.

    python benchmarks/conv_quality.py [--budget 1e13] [--arms 'gpt2;mid']

Tokens are bytes, so that the trunk and not the head is compared; widths are a third of the presets', and GPT-2 has a
third of the baseline's layers, too. Every arm is `launch/train.py` itself and may spend the same training FLOPs, so a
cheaper model sees more text. FLOPs are counted as in docs/records.md, attention as if it were not causal. A second
table counts the pairs that a causal kernel computes, by which full attention gains and windows do not. A learning rate
is the best of three on the first seed, by the validation split; the tables have the test split, over all seeds. Runs go
side by side, a thread each; every finished run is a line of results/conv_quality_runs.jsonl, so the same command goes
on where it was stopped, on another machine too.

    python -m data_prep tokenize --source installed:sympy,mpmath,networkx --tokenizer bytes --out data/bytes
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

from dsllm.errors import UserError, user_errors_exit
from dsllm.models import skeleton
from dsllm.registry import MODELS
from dsllm.training.monitor import read_metrics

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (1, 2, 3)
RATES = (2e-3, 4e-3, 8e-3)
CONTEXT = 1024
VOCABULARY = 320  # of the byte tokenizer, a multiple of 64
BATCH = 2  # sequences a step

Arms = dict[str, dict[str, Any]]


def conv(
    strides: Sequence[int], widths: Sequence[int], encoder: Sequence[int], middle: int, **more: Any
) -> dict[str, Any]:
    """A section whose decoder mirrors its encoder."""
    sizes = {"strides": [*strides], "widths": [*widths], "encoder": [*encoder], "middle": middle, "decoder": [*encoder]}
    return {"name": "conv_attention", "n_head": 2, "n_embd": 64, **sizes, **more}


# GPT-2's own initial deviation is for 768 channels; at 64 it learns more slowly by it. Here it has the other arms'.
GPT2 = {"name": "gpt2", "n_layer": 4, "n_head": 2, "n_embd": 64, "init_std": 0.07}
ARMS: Arms = {
    "gpt2": GPT2,
    "gpt2, window 128": {**GPT2, "window": 128},
    "faithful": conv((4, 4, 4), (16, 32, 64, 128), (0, 1, 1), 2, n_embd=16),
    "equal_parameters": conv((4, 4, 4), (16, 32, 64, 128), (0, 1, 1), 2),
    "mid": conv((4, 4), (48, 96, 160), (1, 1), 4),
    "mid, window 128, read 0": conv((4, 4), (48, 96, 160), (1, 1), 4, windows=[128, None, None], read_out=[0]),
    "equal_flops": conv((4, 4), (64, 96, 160), (2, 3), 8, expansion=2),
    "equal_flops, window 128": conv((4, 4), (64, 96, 160), (2, 3), 8, expansion=2, windows=[128, None, None]),
    "level_0_only": conv((), (48,), (), 3),
    "level_0_only, window 128": conv((), (48,), (), 3, windows=[128]),
    "one stride, wide level 0": conv((4,), (64, 128), (2,), 2, windows=[64, None], read_out=[0]),
}


CAUSAL = ("gpt2", "gpt2, window 128", "mid, window 128, read 0", "level_0_only, window 128")
"""Arms of the second table."""


def section_of(arm: Mapping[str, Any]) -> Any:
    return MODELS[arm["name"]].Config(**arm, context=CONTEXT, vocab_size=VOCABULARY)


def steps_of(arm: Mapping[str, Any], budget: float, causal: bool) -> int:
    """How many steps the budget is good for. Counted causally, a token sees half of the context on average."""
    flops = skeleton(section_of(arm)).flops_per_token(CONTEXT // 2 if causal else CONTEXT)
    return round(budget / (BATCH * CONTEXT * flops))


def key_of(run: Mapping[str, Any]) -> str:
    """What tells a run from all others, and names its folder."""
    about = {name: run[name] for name in ("model", "lr", "seed", "steps", "context", "batch")}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


class Trials:
    """Training runs by arm, learning rate, seed and length, each done once and kept in a file, a line each."""

    def __init__(self, kept: Path, work: Path, data: Path):
        self.kept, self.work, self.data = kept, work, data
        lines = kept.read_text().splitlines() if kept.exists() else []
        self.done = {key_of(run): run for run in map(json.loads, lines)}

    def result(self, arm: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
        """The figures of a run, from an earlier command if it was done then."""
        run = {"arm": arm, "model": ARMS[arm], "lr": lr, "seed": seed, "steps": steps}
        run |= {"context": CONTEXT, "batch": BATCH}
        key = key_of(run)
        if key not in self.done:
            found = {**run, **self._train(run)}
            with self.kept.open("a") as file:
                file.write(json.dumps(found) + "\n")
            self.done[key] = found
            print(f"{arm}, lr {lr:g}, seed {seed}: {found['bits_per_byte']:.4f} bits per byte", flush=True)
        return self.done[key]

    def again(self, run: Mapping[str, Any]) -> Path:
        """The folder of a run done before, with its checkpoint; where this machine has none, the run is repeated."""
        run_dir = self.work / key_of(run)
        if not (run_dir / "checkpoints" / "latest").exists():
            change = self._train(run)["bits_per_byte"] / run["bits_per_byte"] - 1
            print(f"{run['arm']}, seed {run['seed']}: repeated, bits per byte {change:+.2%}", flush=True)
        return run_dir

    def _train(self, run: Mapping[str, Any]) -> dict[str, Any]:
        run_dir = self.work / key_of(run)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        train = {"steps": run["steps"], "micro_batch_size": BATCH, "global_batch_size": BATCH, "lr": run["lr"]}
        train |= {"seed": run["seed"], "precision": "fp32", "ds_config": "ds_configs/zero0.json", "beta2": 0.98}
        train |= {"eval_every": run["steps"], "eval_samples": 256, "test_samples": 512, "checkpoint_every": 0}
        section = section_of(run["model"]).model_dump(mode="json")
        config = {"run_dir": str(run_dir), "model": section, "data": {"path": str(self.data)}}
        config |= {"train": train, "monitor": {"tensorboard": False, "log_every": 50}}
        file = run_dir.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(config))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "launch/train.py", "--config", str(file), "--fresh"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        by_split = {record["split"]: record for record in read_metrics(run_dir) if record["kind"] == "eval"}
        return {
            "val_bits_per_byte": by_split["val"]["bits_per_byte"],
            "bits_per_byte": by_split["test"]["bits_per_byte"],
            "loss": by_split["test"]["loss"],
            "tokens": run["steps"] * BATCH * CONTEXT,
            "processor": report.machine()["processor"],
            "torch": version("torch"),
        }


class Arm(NamedTuple):
    """What came of an arm at one budget: the runs that chose its learning rate, and those of all seeds."""

    tried: list[dict[str, Any]]
    seeds: list[dict[str, Any]]

    @property
    def bits(self) -> list[float]:
        return [run["bits_per_byte"] for run in self.seeds]


def trained(
    trials: Trials, names: Sequence[str], budget: float, causal: bool, pool: ThreadPoolExecutor
) -> dict[str, Arm]:
    """Every arm by name."""
    steps = {name: steps_of(ARMS[name], budget, causal) for name in names}
    first = {name: [pool.submit(trials.result, name, lr, SEEDS[0], steps[name]) for lr in RATES] for name in names}
    arms = {}
    for name, jobs in first.items():
        tried = [job.result() for job in jobs]
        best = min(tried, key=lambda run: run["val_bits_per_byte"])
        more = [pool.submit(trials.result, name, best["lr"], seed, steps[name]) for seed in SEEDS[1:]]
        arms[name] = Arm(tried, [best, *(job.result() for job in more)])
    return arms


def rows(arms: Mapping[str, Arm], causal: bool) -> list[list[str]]:
    baseline = statistics.fmean(arms["gpt2"].bits) if "gpt2" in arms else None
    lines = []
    for name, arm in arms.items():
        model, mean = skeleton(section_of(ARMS[name])), statistics.fmean(arm.bits)
        lines.append(
            [
                name,
                f"{model.count_parameters(embeddings=False) / 1e6:.2f} M",
                f"{model.flops_per_token(CONTEXT // 2 if causal else CONTEXT) / 1e6:.2f} M",
                f"{arm.seeds[0]['tokens'] / 1e6:.2f} M",
                " ".join(f"{run['lr']:g}: {run['val_bits_per_byte']:.3f}" for run in arm.tried),
                f"{mean:.4f} ± {statistics.stdev(arm.bits):.4f}",
                "" if baseline is None else f"{mean / baseline:.3f}",
            ]
        )
    return lines


def write(by_count: Mapping[str, Mapping[str, Arm]], budget: float) -> None:
    """Both tables, and every run's figures. `by_count`: the arms as documented, and counted causally."""
    facts: dict[str, Any] = {"machine": report.machine("torch", "deepspeed"), "budget": budget, "context": CONTEXT}
    facts |= {count: {name: arm._asdict() for name, arm in arms.items()} for count, arms in by_count.items()}
    header = ["arm", "parameters (trunk)", "FLOPs per token", "bytes seen", "rates tried, val bits per byte"]
    header += ["test bits per byte, mean ± sd", "of GPT-2's"]
    about = facts["machine"]
    text = (
        f"Equal training FLOPs, {budget:.1e} each; bytes of sympy, mpmath and networkx, context {CONTEXT}, {BATCH} "
        f"sequences a step, cosine, AdamW, fp32, {len(SEEDS)} seeds, on whichever machine; torch "
        f"{about['versions']['torch']}, commit {about['commit']}, {about['date']}.\n\n"
        f"{report.table(header, rows(by_count['documented'], causal=False))}\n\n"
        f"The same where attention counts the pairs that a causal kernel computes:\n\n"
        f"{report.table(header, rows(by_count['causal'], causal=True))}"
    )
    report.write("conv_quality", facts, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=1e13, help="training FLOPs of each run")
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by semicolons")
    parser.add_argument("--data", type=Path, default=Path("data/bytes"))
    parser.add_argument("--work", type=Path, default=Path("runs/conv_quality"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side, a thread each")
    arguments = parser.parse_args()
    with user_errors_exit():
        names = arguments.arms.split(";")
        for name in names:
            if name not in ARMS:
                raise UserError(f"--arms {name}: no such arm; take {'; '.join(ARMS)}")
        trials = Trials(report.RESULTS / "conv_quality_runs.jsonl", arguments.work, arguments.data.absolute())
        causal = [name for name in names if name in CAUSAL]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            by_count = {
                "causal": trained(trials, causal, arguments.budget, True, pool),
                "documented": trained(trials, names, arguments.budget, False, pool),
            }
    write(by_count, arguments.budget)


if __name__ == "__main__":
    main()
