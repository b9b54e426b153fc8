"""Seconds, and seconds per GB, of saving, resuming, resuming on other ranks, and growing a checkpoint.

    python benchmarks/checkpoints.py [--repeats 3] [--folder DIR]

GPT-2 124M in fp32 on two ranks, ZeRO 2 and 3: weights and both of Adam's moments are 12 bytes a parameter, 1.5 GB. A
save stands in the way of training: its seconds are what training is stalled by. Resuming is what the trainer needs from
its configuration to its first step, its tensors' checksums verified, beside a fresh beginning's; checkpoints name whole
tensors, so that another number of ranks reads them as they are. Growing is `launch/grow.py` as a command, its probe of
both models included. Files are on this machine's disk; --folder names another.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from steps import ROOT

SIZES = ("--model.name=progressive", "--model.n_layer=12", "--model.n_head=12", "--model.n_embd=768")
STEPS = 4


def timed(run_dir: Path, data: str, ranks: int, stage: int, *options: str) -> list[dict[str, Any]]:
    """What a run noted of its times; a run that is there goes on."""
    command = ["benchmarks/checkpoint_worker.py", "--config=launch/recipes/gpt2_124m.yaml", f"--run_dir={run_dir}"]
    command += [*SIZES, "--model.context=64", f"--data.path={data}", "--train.micro_batch_size=1"]
    command += ["--train.global_batch_size=2", "--train.precision=fp32", "--train.warmup_tokens=0"]
    command += ["--train.eval_every=0", "--train.test_samples=0", "--monitor.tensorboard=false"]
    command += [f"--train.ds_config=ds_configs/zero{stage}.json", *options]
    launched(command, ranks)
    times = run_dir / "times.jsonl"
    lines = [json.loads(line) for line in times.read_text().splitlines()]
    times.unlink()
    return lines


def launched(command: list[str], ranks: int = 1) -> None:
    binaries = Path(sys.executable).parent
    launcher = [str(binaries / "deepspeed"), "--num_gpus", str(ranks)] if ranks > 1 else [sys.executable]
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*launcher, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def once(folder: Path, data: str, stage: int) -> dict[str, list[float]]:
    """Seconds of each part, of one run that is resumed twice and grown; and the bytes of its checkpoints."""
    run_dir = folder / "run"
    lines = timed(run_dir, data, 2, stage, f"--train.steps={STEPS}", "--train.checkpoint_every=1")
    found = {"fresh": _of(lines, "begun"), "save": _of(lines, "saved"), "bytes": [float(lines[-1]["bytes"])]}
    found["step"] = _of(lines, "stepped")
    for ranks, name in ((2, "resume"), (1, "resume on one rank")):
        more = [f"--train.steps={STEPS + 1}", "--train.checkpoint_every=0", "--train.keep_checkpoints=9"]
        copy = folder / f"copy_{ranks}"
        subprocess.run(["cp", "-r", str(run_dir), str(copy)], check=True)
        found[name] = _of(timed(copy, data, ranks, stage, *more), "begun")
        subprocess.run(["rm", "-r", str(copy)], check=True)
    begun = time.perf_counter()
    out = folder / "grown"
    launched(["launch/grow.py", str(run_dir), "--out", str(out), "--operator", "stack", "--factor", "2"])
    found["grow"] = [time.perf_counter() - begun]
    found["grown bytes"] = [float(sum(file.stat().st_size for file in out.rglob("*") if file.is_file()))]
    return found


def _of(lines: list[dict[str, Any]], what: str) -> list[float]:
    return [line["seconds"] for line in lines if line["what"] == what]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default="data/demo")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; by default a temporary folder")
    arguments = parser.parse_args()
    found: dict[int, dict[str, list[float]]] = {2: {}, 3: {}}
    for _ in range(arguments.repeats):
        for stage, of in found.items():
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                for name, values in once(Path(folder), arguments.data, stage).items():
                    of.setdefault(name, []).extend(values)
    facts: dict[str, Any] = {"machine": report.machine("torch", "deepspeed"), "stages": {}}
    rows = []
    for stage, of in found.items():
        facts["stages"][stage] = {name: report.summary(values) for name, values in of.items()}
        for name in ("step", "fresh", "save", "resume", "resume on one rank", "grow"):
            size = facts["stages"][stage]["grown bytes" if name == "grow" else "bytes"]["median"] / 1e9
            values = facts["stages"][stage][name]
            moved = name not in ("step", "fresh")
            rows.append(
                [
                    stage,
                    {"step": "a step", "fresh": "a fresh beginning"}.get(name, name),
                    report.spread(values, 2),
                    f"{size:.2f}" if moved else "",
                    f"{values['median'] / size:.2f}" if moved else "",
                ]
            )
    about = facts["machine"]
    text = (
        f"GPT-2 124M, fp32, two ranks of one thread, with Adam's moments; {report.described(about)}; median "
        f"(least–most) of {arguments.repeats} runs"
    )
    header = ["ZeRO", "what", "seconds", "GB", "seconds per GB"]
    report.write("checkpoints", facts, f"{text}\n\n{report.table(header, rows)}")


if __name__ == "__main__":
    main()
