"""A training step of the origin's baseline beside those of nanoGPT, Hugging Face's Trainer and litgpt.

    python benchmarks/train_peers.py --nanogpt ~/nanoGPT --litgpt .venv-litgpt [--repeats 3] [--steps 100]

The same model (12 layers, 192 wide, 6 heads, context 256, GPT-2 vocabulary) from the same weights on the same batches
of 8 sequences, with one learning rate, AdamW and clipping; litgpt's GPT has no learned positions, so its model differs
in those. Ours is `launch/train.py` itself. Each run is a fresh process on all cores, the contenders take turns, and the
first steps, with what is compiled in them, are left out and told apart. nanoGPT is a checkout of the user's, litgpt
lives in an environment of its own (`make .venv-litgpt`); what is not given is left out.

Needs token shards: `make demo` writes data/demo.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from peers.problem import write_problem
from steps import ROOT, records_of
from train import matrix_peak

from dsllm.config import RunConfig
from dsllm.errors import user_errors_exit
from dsllm.training.precision import Precision

BASELINE = "launch/recipes/origin_gpt2.yaml"
WARM_UP = 5
LAST = 10
"""Steps at the end, whose mean loss is compared."""
SETTINGS = ("train.global_batch_size=8", "train.schedule=wsd", "train.warmup_tokens=0", "train.decay_tokens=0")


@dataclass(frozen=True)
class Contender:
    """A way to train the problem."""

    name: str
    precision: Precision

    def run(self, problem: Path, settings: list[str]) -> dict[str, Any]:
        """Train once: `step_seconds` and `losses` of all steps, `memory_mib` at the peak."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ours(Contender):
    stage: int
    options: tuple[str, ...] = ()

    def run(self, problem: Path, settings: list[str]) -> dict[str, Any]:
        given = [*settings, f"train.precision={self.precision}", f"train.ds_config=ds_configs/zero{self.stage}.json"]
        overrides = [f"--{setting}" for setting in (*given, *self.options) if not setting.startswith("data.path")]
        data = next(setting.partition("=")[2] for setting in settings if setting.startswith("data.path"))
        records = [record for record in records_of(BASELINE, data, 1, *overrides) if record["kind"] == "train"]
        return {
            "step_seconds": [record["step_seconds"] for record in records],
            "losses": [record["loss"] for record in records],
            "memory_mib": records[-1]["memory_bytes"] / 2**20,
        }


@dataclass(frozen=True)
class Peer(Contender):
    script: str
    options: tuple[str, ...] = ()
    python: Path = Path(sys.executable)

    def run(self, problem: Path, settings: list[str]) -> dict[str, Any]:
        command = [str(self.python), f"benchmarks/peers/{self.script}.py", str(problem), *self.options]
        command += ["--precision", self.precision]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


def contenders(nanogpt: Path | None, litgpt: Path | None, precisions: Sequence[Precision]) -> list[Contender]:
    found: list[Contender] = []
    for precision in precisions:
        found += [Ours(f"dsllm, ZeRO {stage}", precision, stage) for stage in (0, 2)]
        found.append(Ours("dsllm, ZeRO 0, compiled", precision, 0, ("train.compile=true",)))
        for words, compiled in (("", ()), (", compiled", ("--compile",))):
            if nanogpt is not None:
                found.append(Peer(f"nanoGPT{words}", precision, "nanogpt", (*compiled, "--checkout", str(nanogpt))))
            found.append(Peer(f"Hugging Face Trainer{words}", precision, "hf_trainer", compiled))
        if litgpt is not None:
            found.append(Peer("litgpt, compiled", precision, "litgpt_pretrain", (), litgpt / "bin" / "python"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of it")
    parser.add_argument("--litgpt", type=Path, help="the environment that it is in")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--data", default="data/demo")
    parser.add_argument("--only", default="", help="contenders whose name this regular expression finds")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    arguments = parser.parse_args()
    settings = [*SETTINGS, f"data.path={arguments.data}", f"train.steps={arguments.steps}"]
    with user_errors_exit(), tempfile.TemporaryDirectory() as folder:
        problem = Path(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(problem / "compiled")  # nobody finds what was compiled before
        write_problem(RunConfig.from_file(BASELINE, [*settings, f"run_dir={folder}/run"]), problem)
        known = contenders(arguments.nanogpt, arguments.litgpt, arguments.precisions)
        arms = [contender for contender in known if re.search(arguments.only, contender.name)]
        runs: dict[Contender, list[dict[str, Any]]] = {arm: [] for arm in arms}
        peaks: dict[Precision, float] = {}
        for repeat in range(arguments.repeats):
            for arm in arms:
                peaks[arm.precision] = max(peaks.get(arm.precision, 0.0), matrix_peak(arm.precision))
                runs[arm].append(arm.run(problem, settings))
                print(f"{repeat + 1} of {arguments.repeats}: {arm.name}, {arm.precision}", file=sys.stderr, flush=True)
            _report(runs, peaks)


def _report(runs: dict[Contender, list[dict[str, Any]]], peaks: dict[Precision, float]) -> None:
    arms: list[dict[str, Any]] = []
    for arm, results in runs.items():
        figures = {
            "ms_per_step": [1000 * statistics.median(result["step_seconds"][WARM_UP:]) for result in results],
            "first_seconds": [result["step_seconds"][0] for result in results],
            "memory_mib": [result["memory_mib"] for result in results],
            "loss": [statistics.fmean(result["losses"][-LAST:]) for result in results],
        }
        named = {key: report.summary(values) for key, values in figures.items()}
        arms.append({"name": arm.name, "precision": arm.precision, **named})
    best = min((arm["ms_per_step"]["median"] for arm in arms if not arm["name"].startswith("dsllm")), default=None)
    rows = []
    for arm in arms:
        ms = arm["ms_per_step"]["median"]
        ours = arm["name"].startswith("dsllm") and best is not None
        rows.append(
            [
                arm["name"],
                arm["precision"],
                report.spread(arm["ms_per_step"]),
                f"{best / ms:.2f}×" if ours else "",
                report.spread(arm["memory_mib"]),
                f"{arm['loss']['median']:.4f}",
                report.spread(arm["first_seconds"], 1),
            ]
        )
    about = report.machine("torch", "deepspeed", "transformers")
    text = (
        f"The origin's baseline, 8 × 256 tokens a step, one process; {report.described(about)}; median (least–most) of "
        f"{arms[0]['loss']['repeats']} runs. Matrix peak: "
        + ", ".join(f"{precision} {peak / 1e9:,.0f} GFLOP/s" for precision, peak in peaks.items())
    )
    columns = ["contender", "precision", "ms per step", "faster than the fastest peer", "peak MiB"]
    header = [*columns, f"loss, mean of the last {LAST} steps", "first step, s"]
    facts = {"machine": about, "matrix_peak": peaks, "arms": arms}
    report.write("train_peers", facts, f"{text}\n\n{report.table(header, rows)}")


if __name__ == "__main__":
    main()
