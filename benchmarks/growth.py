"""What a structural event costs: memory while it happens, memory that stays, memory of shared bases, and seconds.

    python benchmarks/growth.py [--size 124M | small] [--repeats 1]

Every figure is a real process's. Memory is resident memory from /proc, whose peak the kernel is asked to forget before
each part; pages of files that are mapped count. Two ranks are started by the `deepspeed` launcher; the model trains on
two sequences of 128 tokens a step, so that little of the memory is activations. Needs data/demo, as `make demo` has it.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

from dsllm.growth.operators import interpose
from dsllm.growth.plan import as_growable, make_plan
from dsllm.models import skeleton
from dsllm.models.progressive import ProgressiveConfig
from dsllm.training.monitor import read_metrics
from dsllm.training.tensors import initial_values, materialise

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
RANKS = 2
STEPS = 20
"""Of the run that grows five times, every second step; what it holds is the median of the ten steps after them."""
PARTS = {"saved": "saving", "probed": "probing", "grown": "growing", "ready": "beginning"}
SIZES: dict[str, dict[str, Any]] = {
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context": 128},
    "small": {"n_layer": 2, "n_head": 4, "n_embd": 128, "context": 128},
}


def launch(
    run_dir: Path, model: dict[str, Any], growth: dict[str, Any], stage: int, steps: int, data: str = "data/demo"
) -> None:
    """Train, as `launch/train.py` would, with a worker that writes its memory down."""
    config = {
        "run_dir": str(run_dir),
        "model": {"name": "progressive", **model},
        "data": {"path": data},
        "train": {
            "steps": steps,
            "micro_batch_size": 1,
            "global_batch_size": RANKS,
            "lr": 1e-4,
            "schedule": "wsd",
            "decay_tokens": 0,
            "precision": "fp32",
            "ds_config": f"ds_configs/zero{stage}.json",
            "eval_every": 0,
            "test_samples": 0,
            "checkpoint_every": 0,
            "keep_checkpoints": 9,
        },
        "growth": {"watch_every": 0, "probe_samples": 4, **growth},
        "monitor": {"log_every": 1, "tensorboard": False},
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    recipe = run_dir / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config))
    binaries = Path(sys.executable).parent
    with socket.socket() as free:  # so that another run's rendezvous does not disturb this one
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [binaries / "deepspeed", "--master_port", port, "--num_gpus", RANKS]
    command = [*launcher, "benchmarks/growth_worker.py", "--config", recipe]
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def memory(run_dir: Path) -> list[list[dict[str, Any]]]:
    """What each rank wrote down."""
    paths = (run_dir / f"memory_{rank}.jsonl" for rank in range(RANKS))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def events(folder: Path, size: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Grow the model to twice its depth under adapters, then merge: seconds of both events, and memory at ZeRO-3."""
    seconds, extra = [], []
    for stage in (2, 3):
        run_dir = folder / f"events{stage}"
        growth = {"preset": "diverge_consolidate", "diverge_share": 0.34, "policy": {"name": "schedule", "at": [0.25]}}
        launch(run_dir, SIZES[size], {**growth, "lora": {"rank": 32}}, stage, steps=8)
        receipts = [record for record in read_metrics(run_dir) if record["kind"] == "growth"]
        for receipt in receipts:
            facts = {key: receipt[key] for key in ("operator", "parameters", "trainable_parameters", "seconds")}
            seconds.append({"stage": stage, **facts, "bytes_written": receipt["bytes_written"]})
        if stage == 3:
            extra = extra_memory(run_dir)
    return seconds, extra


def extra_memory(run_dir: Path) -> list[dict[str, Any]]:
    """At ZeRO-3: how far each event, and each beginning after it, rose above what the rank then held, and the bound."""
    checkpoints = sorted(path for path in (run_dir / "checkpoints").iterdir() if (path / "COMPLETE").exists())
    rows = []
    for rank, lines in enumerate(memory(run_dir)):
        events = [line for line in lines if line["what"] in PARTS]
        for line in events:
            # The checkpoint that the model of this line came from, and its largest tensor.
            name = {("full", 0): 0, ("diverge", 1): 1, ("consolidate", 1): 3}[line["phase"], line["stage"]]
            entries = json.loads((checkpoints[name] / "tensors.json").read_text())["entries"]
            sizes = [4 * torch.Size(entry["shape"]).numel() for entry in entries]
            shard = sum(sizes) // RANKS
            floor = max(line["before"], line["held"]) if line["what"] == "ready" else line["before"]
            rows.append(
                {
                    "what": PARTS[line["what"]],
                    "phase": line["phase"],
                    "rank": rank,
                    "held_mib": line["held"] / MIB,
                    "extra_mib": (line["peak"] - floor) / MIB,
                    "shard_mib": shard / MIB,
                    "largest_mib": max(sizes) / MIB,
                    "bound_mib": (shard + 2 * max(sizes)) / MIB,
                }
            )
    return rows


def creep(folder: Path, size: str) -> list[dict[str, Any]]:
    """Memory of a process after five events, and of a fresh one that resumes from the last of them, at one step."""
    rows = []
    model = {**SIZES[size], "n_layer": 32, "uses": 32, "n_embd": SIZES[size]["n_embd"] // 2}
    policy = {"name": "schedule", "at": [0.1, 0.2, 0.3, 0.4, 0.5]}
    growth = {"preset": "no_diverge", "operator": "untie", "policy": policy}
    for stage in range(4):
        run_dir, fresh_dir = folder / f"creep{stage}", folder / f"fresh{stage}"
        launch(run_dir, model, growth, stage, steps=STEPS)
        shutil.copytree(run_dir, fresh_dir, ignore=shutil.ignore_patterns("memory_*", f"step_{STEPS:08d}"))
        launch(fresh_dir, model, growth, stage, steps=STEPS)
        for rank, both in enumerate(zip(memory(run_dir), memory(fresh_dir), strict=True)):
            after, fresh = ([line["held"] for line in lines if steps_of(line, 5)] for lines in both)
            assert len(after) == len(fresh) == STEPS // 2
            # What a process holds moves by a tenth from step to step.
            held, fresh_held = statistics.median(after), statistics.median(fresh)
            first = statistics.median(line["held"] for line in both[0] if steps_of(line, 0))
            facts = {"first_mib": first / MIB, "held_mib": held / MIB, "fresh_mib": fresh_held / MIB}
            rows.append({"stage": stage, "rank": rank, **facts, "more": held / fresh_held - 1})
    return rows


def steps_of(line: dict[str, Any], stage: int) -> bool:
    return line["what"] == "step" and line["stage"] == stage


def shared_bases(size: str) -> dict[str, Any]:
    """Parameter memory of a model four times as deep whose copies share their frozen bases, in allocated storage."""
    shape = {**SIZES[size], "vocab_size": 50304}
    small = as_growable(ProgressiveConfig(**shape))
    from dsllm.config import LoRAConfig

    deep_config = ProgressiveConfig(
        **make_plan(interpose(small, 4), small, "benchmark", lora=LoRAConfig(rank=shape["n_embd"] // 8)).model_after
    )
    sizes = {}
    for name, config in (("plain", small), ("deep", deep_config)):
        model = skeleton(config)
        materialise(model, initial_values(model, 0), only_missing=True)
        storages: dict[int, tuple[int, bool]] = {}
        for key, parameter in model.named_parameters():
            storages[parameter.untyped_storage().data_ptr()] = (parameter.untyped_storage().nbytes(), "lora" in key)
        sizes[name] = sum(size for size, adapter in storages.values() if not adapter)
        sizes[f"{name}_adapters"] = sum(size for size, adapter in storages.values() if adapter)
    return {**sizes, "ratio": sizes["deep"] / sizes["plain"], "layers": [small.n_layer, deep_config.n_layer]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="124M")
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory(dir=ROOT / "runs" if (ROOT / "runs").exists() else None) as folder:
        seconds, extra = events(Path(folder), size)
        creeping = creep(Path(folder), size)
    shared = shared_bases(size)
    facts = {
        "machine": report.machine("torch", "deepspeed"),
        "size": size,
        "events": seconds,
        "extra_memory": extra,
        "creep": creeping,
        "shared_bases": shared,
    }
    name = "growth" if size == "124M" else f"growth_{size}"
    report.write(name, facts, as_text(facts))


def as_text(facts: dict[str, Any]) -> str:
    """The four tables."""
    host, shared = facts["machine"], facts["shared_bases"]
    parts = list(facts["events"][0]["seconds"])
    seconds = report.table(
        ["ZeRO", "event", "parameters", "that train", *(f"{part} s" for part in parts), "in all s", "MiB written"],
        [
            [
                event["stage"],
                event["operator"],
                f"{event['parameters'] / 1e6:.0f} M",
                f"{event['trainable_parameters'] / 1e6:.0f} M",
                *(f"{event['seconds'].get(part, 0.0):.1f}" for part in parts),
                f"**{sum(event['seconds'].values()):.1f}**",
                f"{event['bytes_written'] / MIB:,.0f}",
            ]
            for event in facts["events"]
        ],
    )
    extra = report.table(
        [
            "what",
            "phase",
            "rank",
            "holds MiB",
            "rises above it MiB",
            "its shard MiB",
            "largest tensor MiB",
            "bound MiB",
        ],
        [
            [
                row["what"],
                row["phase"],
                row["rank"],
                *(f"{row[key]:,.0f}" for key in ("held_mib", "extra_mib", "shard_mib", "largest_mib", "bound_mib")),
            ]
            for row in facts["extra_memory"]
        ],
    )
    creeping = report.table(
        ["ZeRO", "rank", "before the first event MiB", "after five MiB", "fresh MiB", "more"],
        [
            [
                row["stage"],
                row["rank"],
                *(f"{row[key]:,.0f}" for key in ("first_mib", "held_mib", "fresh_mib")),
                f"{row['more']:+.1%}",
            ]
            for row in facts["creep"]
        ],
    )
    return f"""Structural events (`benchmarks/growth.py`). {host["processor"]}, {host["cores"]} cores, torch \
{host["versions"]["torch"]}, DeepSpeed {host["versions"]["deepspeed"]}, {RANKS} ranks of one thread, fp32, commit \
{host["commit"]}, {host["date"]}; one run each.

A {facts["size"]} model grows from 12 to 24 layers under adapters of rank 32, and is merged:

{seconds}

Memory of a rank at ZeRO-3 above what it holds then; a growing event should stay below its shard (weights and moments)
and twice the largest tensor:

{extra}

Five events in one launch (32 executed layers, 1 block to 32), and a fresh process at the same step:

{creeping}

Copies that share a base: {shared["layers"][0]} layers take {shared["plain"] / MIB:,.0f} MiB of parameters; \
{shared["layers"][1]} layers in diverge take {shared["deep"] / MIB:,.0f} MiB, **{shared["ratio"]:.3f} times as much**, \
and {shared["deep_adapters"] / MIB:,.0f} MiB of adapters."""


if __name__ == "__main__":
    main()
