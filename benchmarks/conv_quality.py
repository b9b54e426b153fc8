"""What convolution attention costs in quality: bits per byte at equal training FLOPs, against GPT-2, on real text.

    python benchmarks/conv_quality.py [--budget 1e13] [--arms 'gpt2;mid']

Tokens are bytes, so that the trunk and not the head is compared; sizes are about half of the presets' widths. Every arm
is `launch/train.py` itself and may spend the same training FLOPs (`flops_per_token`, docs/records.md), so a cheaper
model sees more text. Its learning rate is the best of four on the first seed, by the validation split; the table has
the test split, over all seeds. Runs go side by side, a thread each; every finished run is a line of
results/conv_quality_runs.jsonl, so the same command goes on where it was stopped, on another machine too.

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
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

from dsllm.errors import UserError, user_errors_exit
from dsllm.models import skeleton
from dsllm.registry import MODELS
from dsllm.training.monitor import read_metrics

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (1, 2, 3)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
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


def section_of(arm: Mapping[str, Any]) -> Any:
    return MODELS[arm["name"]].Config(**arm, context=CONTEXT, vocab_size=VOCABULARY)


class Trials:
    """Training runs by arm, learning rate and seed, each done once and kept in a file, a line each."""

    def __init__(self, kept: Path, work: Path, data: Path, budget: float):
        self.kept, self.work, self.data, self.budget = kept, work, data, budget
        lines = kept.read_text().splitlines() if kept.exists() else []
        self.done: dict[str, dict[str, Any]] = {facts["key"]: facts for facts in map(json.loads, lines)}

    def again(self, found: Mapping[str, Any]) -> Path:
        """The folder of a run done before, with its checkpoint; where this machine has none, the run is repeated."""
        run_dir = self.work / found["key"]
        if not (run_dir / "checkpoints" / "latest").exists():
            self.work.mkdir(parents=True, exist_ok=True)
            figures = self._train(found["model"], found["lr"], found["seed"], run_dir)
            change = figures["bits_per_byte"] / found["bits_per_byte"] - 1
            print(f"{found['arm']}, seed {found['seed']}: repeated, bits per byte {change:+.2%}", flush=True)
        return run_dir

    def result(self, name: str, lr: float, seed: int) -> dict[str, Any]:
        """The figures of a run, from an earlier command if it was done then."""
        about = {"model": ARMS[name], "lr": lr, "seed": seed, "budget": self.budget, "context": CONTEXT, "batch": BATCH}
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        if key not in self.done:
            found = {"key": key, "arm": name, **about, **self._train(ARMS[name], lr, seed, self.work / key)}
            with self.kept.open("a") as file:
                file.write(json.dumps(found) + "\n")
            self.done[key] = found
            print(f"{name}, lr {lr:g}, seed {seed}: {found['bits_per_byte']:.4f} bits per byte", flush=True)
        return self.done[key]

    def _train(self, arm: Mapping[str, Any], lr: float, seed: int, run_dir: Path) -> dict[str, float]:
        section = section_of(arm)
        per_step = BATCH * CONTEXT * skeleton(section).flops_per_token(CONTEXT)
        steps = round(self.budget / per_step)
        train = {"steps": steps, "micro_batch_size": BATCH, "global_batch_size": BATCH, "lr": lr, "seed": seed}
        train |= {"precision": "fp32", "ds_config": "ds_configs/zero0.json", "eval_every": steps, "eval_samples": 256}
        train |= {"test_samples": 512, "checkpoint_every": 0, "beta2": 0.98}
        config = {"run_dir": str(run_dir), "model": section.model_dump(mode="json"), "data": {"path": str(self.data)}}
        config |= {"train": train, "monitor": {"tensorboard": False, "log_every": 50}}
        file = run_dir.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(config))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "launch/train.py", "--config", str(file), "--fresh"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        records = read_metrics(run_dir)
        by_split = {record["split"]: record for record in records if record["kind"] == "eval"}
        return {
            "val_bits_per_byte": by_split["val"]["bits_per_byte"],
            "bits_per_byte": by_split["test"]["bits_per_byte"],
            "loss": by_split["test"]["loss"],
            "steps": steps,
            "tokens": steps * BATCH * CONTEXT,
        }


def write(rows: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]], budget: float) -> None:
    """The table, and every run's figures. `rows`: by arm, the runs that chose the rate and those of all seeds."""
    facts = {"machine": report.machine("torch", "deepspeed"), "budget": budget, "context": CONTEXT, "arms": {}}
    cells = []
    baseline = _mean(rows["gpt2"][1]) if "gpt2" in rows else None
    for name, (tried, runs) in rows.items():
        model = skeleton(section_of(ARMS[name]))
        bits = [run["bits_per_byte"] for run in runs]
        facts["arms"][name] = {"model": ARMS[name], "tried": tried, "seeds": runs}
        cells.append(
            [
                name,
                f"{model.count_parameters(embeddings=False) / 1e6:.2f} M",
                f"{model.flops_per_token(CONTEXT) / 1e6:.2f} M",
                f"{runs[0]['tokens'] / 1e6:.2f} M",
                " ".join(f"{run['lr']:g}: {run['val_bits_per_byte']:.3f}" for run in tried),
                f"{_mean(runs):.4f} ± {statistics.stdev(bits):.4f}",
                "" if baseline is None else f"{_mean(runs) / baseline:.3f}",
            ]
        )
    header = ["arm", "parameters (trunk)", "FLOPs per token", "bytes seen", "rates tried, val bits per byte"]
    header += ["test bits per byte, mean ± sd", "of GPT-2's"]
    about = facts["machine"]
    text = (
        f"Equal training FLOPs, {budget:.1e} each; bytes of sympy, mpmath and networkx, context {CONTEXT}, {BATCH} "
        f"sequences a step, cosine, AdamW, fp32, {len(SEEDS)} seeds, on whichever machine; torch "
        f"{about['versions']['torch']}, commit {about['commit']}, {about['date']}."
    )
    report.write("conv_quality", facts, f"{text}\n\n{report.table(header, cells)}")


def _mean(runs: Sequence[Mapping[str, Any]]) -> float:
    return statistics.fmean(run["bits_per_byte"] for run in runs)


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
        arguments.work.mkdir(parents=True, exist_ok=True)
        kept = report.RESULTS / "conv_quality_runs.jsonl"
        trials = Trials(kept, arguments.work, arguments.data.absolute(), arguments.budget)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            first = {name: [pool.submit(trials.result, name, lr, SEEDS[0]) for lr in RATES] for name in names}
            rows: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
            for name, tried in first.items():
                found = [job.result() for job in tried]
                best = min(found, key=lambda result: result["val_bits_per_byte"])
                more = [pool.submit(trials.result, name, best["lr"], seed) for seed in SEEDS[1:]]
                rows[name] = found, [best, *(job.result() for job in more)]
    write(rows, arguments.budget)


if __name__ == "__main__":
    main()
