"""Making tokens: data_prep against tiktoken and against a `datasets.map` pipeline such as nanoGPT's.

    python benchmarks/prep.py [--repeats 5] [--corpus installed:sympy,mpmath,networkx]

Each run is a fresh process on the same documents, with a thread or a process per core. They take turns, so that a
machine whose speed drifts slows all of them; one round before the first is thrown away, so that all find the files in
memory. Another program on the same cores would slow most the contender that uses them best, so the processor time of
others is measured: a run is repeated if they had more than 3 % of the cores, whoever ran and however fast it was.

"Tokenising" is from documents in memory to tokens in memory, cold; "whole command" is the life of the process,
from its start over reading and tokenising to files on disk. All must find the same number of tokens.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

from data_prep.sources.opening import open_source

MAX_OTHERS = 0.03
OWN = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(__file__).with_name("prep_contenders.py")
CORPORA = ("installed:sympy,mpmath,networkx", "installed:sympy,mpmath,networkx,numpy,torch,transformers,deepspeed")
TOKENISING = {"data_prep_encoding": "data_prep", "tiktoken": "tiktoken", "datasets_map": "datasets.map"}
WHOLE = {"data_prep": "data_prep", "tiktoken": "tiktoken", "datasets_map": "datasets.map"}


def busy_seconds() -> tuple[float, float]:
    """Processor seconds that all programs and the hypervisor took so far, and those of this script's processes."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = sum(sum((usage.ru_utime, usage.ru_stime)) for usage in map(resource.getrusage, OWN))
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own


def measure(contender: str, corpus: str) -> dict[str, Any]:
    """One fresh process: its tokens, its seconds for tokenising and in all, and the share of the cores others had."""
    with tempfile.TemporaryDirectory() as folder:
        all_before, own_before = busy_seconds()
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, SCRIPT, contender, corpus, folder], cwd=ROOT, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{contender} on {corpus}:\n{done.stderr}")
    all_after, own_after = busy_seconds()
    others = (all_after - all_before) - (own_after - own_before)
    facts = json.loads(done.stdout.splitlines()[-1])
    facts["process_seconds"] = seconds - facts.pop("setup_seconds", 0.0)
    return {**facts, "others": max(others, 0.0) / (seconds * len(os.sched_getaffinity(0)))}


def measure_undisturbed(contender: str, corpus: str, patience: int) -> tuple[dict[str, Any], int]:
    """The first run that no other program disturbed, and how many before it were thrown away."""
    for discarded in range(patience):
        run = measure(contender, corpus)
        print(f"{contender}: {run}", file=sys.stderr)
        if run["others"] <= MAX_OTHERS:
            return run, discarded
        time.sleep(5)
    raise SystemExit(
        f"{contender}: other programs disturbed {patience} runs in a row; measure when the machine is quiet"
    )


def compare(corpus: str, repeats: int, patience: int) -> dict[str, Any]:
    """All contenders on one corpus, in turns."""
    contenders = sorted({*TOKENISING, *WHOLE})
    runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
    discarded = dict.fromkeys(contenders, 0)
    for round_ in range(repeats + 1):
        for contender in contenders:
            if not round_:
                measure(contender, corpus)
                continue
            run, disturbed = measure_undisturbed(contender, corpus, patience)
            runs[contender].append(run)
            discarded[contender] += disturbed
    counts = {run["tokens"] for of_one in runs.values() for run in of_one}
    if len(counts) != 1:
        raise SystemExit(f"{corpus}: the contenders do not agree on the number of tokens: {sorted(counts)}")
    [tokens] = counts
    identity = open_source(corpus).identity
    return {
        "corpus": corpus,
        "bytes": identity["bytes"],
        "files": identity["files"],
        "tokens": tokens,
        "runs": runs,
        "discarded": discarded,
        "tokenising_seconds": {name: report.summary([r["encode_seconds"] for r in runs[name]]) for name in TOKENISING},
        "whole_seconds": {name: report.summary([r["process_seconds"] for r in runs[name]]) for name in WHOLE},
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's lines for one corpus; the slower a median, the more it is multiplied to reach data_prep's speed."""
    lines = []
    for what, key, names in (
        ("tokenising, cold", "tokenising_seconds", TOKENISING),
        ("whole command", "whole_seconds", WHOLE),
    ):
        ours = result[key][next(iter(names))]["median"]
        for name, shown in names.items():
            seconds = result[key][name]
            median = seconds["median"]
            lines.append(
                [
                    f"{result['bytes'] / 1e6:.1f} MB",
                    what,
                    shown,
                    report.spread(seconds, 2),
                    f"{result['bytes'] / median / 1e6:.1f}",
                    f"{result['tokens'] / median / 1e6:.1f}",
                    "" if shown == "data_prep" else f"{median / ours:.1f}×",
                ]
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each contender that count")
    parser.add_argument("--patience", type=int, default=20, help="disturbed runs in a row before giving up")
    parser.add_argument("--corpus", nargs="+", default=CORPORA, help="what `data_prep tokenize --source` takes")
    arguments = parser.parse_args()
    results = [compare(corpus, arguments.repeats, arguments.patience) for corpus in arguments.corpus]
    machine = report.machine("tiktoken", "gigatoken", "datasets", "numpy")
    header = ["text", "what", "by", "seconds (least–most)", "MB/s", "M tokens/s", "data_prep is faster by"]
    lines = [line for result in results for line in rows(result)]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    about = (
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {versions}, "
        f"commit {machine['commit']}, {machine['date']}; "
        f"medians of {arguments.repeats} fresh processes each, in turns; "
        f"{sum(sum(each['discarded'].values()) for each in results)} runs that other programs disturbed were repeated."
    )
    corpora = "\n".join(
        f"- {each['bytes'] / 1e6:.1f} MB: `{each['corpus']}`, {each['files']:,} files, {each['tokens']:,} tokens"
        for each in results
    )
    report.write(
        "prep", {"machine": machine, "results": results}, f"{about}\n\n{corpora}\n\n{report.table(header, lines)}"
    )


if __name__ == "__main__":
    main()
