"""Try every parser of outside input with damaged files: python tests/faults/fuzz.py [--inputs 200000] [--seed 1]

Prints, and writes to tests/faults/results/fuzz.md, how many were refused and read, and what else became of them; exit
code 1 if anything did. The inputs of findings are kept beside it.
"""

import argparse
import faulthandler
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.faults.corpus import Corpus  # noqa: E402  # after the repository is on the path
from tests.faults.fuzzing import Trial, parsers_of, table  # noqa: E402

RESULTS = Path(__file__).with_name("results")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=200_000, help="over all parsers (200000)")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", help="the parser of that name alone")
    options.add_argument("--out", type=Path, default=RESULTS / "fuzz.md")
    asked = options.parse_args()
    faulthandler.enable()  # a crash of a library shows where
    warnings.simplefilter("ignore")
    trials = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        parsers = [of for of in parsers_of(Corpus(Path(folder))) if asked.only in (None, of.name)]
        whole = sum(parser.share for parser in parsers)
        for parser in parsers:
            trial = Trial(parser)
            trials.append(trial)
            for content in parser.inputs(asked.seed, 1 + int(asked.inputs * parser.share / whole)):
                trial.of(content)
            trial.end()
            print(
                f"{parser.name}: {trial.refused:,} refused, {trial.read:,} read, {trial.found:,} findings", flush=True
            )
            for number, (words, content) in enumerate(trial.findings.items()):
                print(f"  {words}", flush=True)
                kept = asked.out.parent / "findings" / f"{parser.name.replace(' ', '_').replace('/', '_')}_{number}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(parser.written(content))
    minutes = (time.monotonic() - begun) / 60
    command = f"python tests/faults/fuzz.py --inputs {asked.inputs} --seed {asked.seed}"
    said = f"`{command}`: {minutes:.1f} minutes on one core.\n"
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(f"{table(trials)}\n{said}")
    print(f"\n{table(trials)}\n{said}")
    raise SystemExit(1 if any(trial.found for trial in trials) else 0)


if __name__ == "__main__":
    main()
