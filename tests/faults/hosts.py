"""The table of faults of hosts: how often each was made to happen, and the seconds to stop and to go on.

python tests/faults/hosts.py [--times 3]        as root: the hosts are network namespaces of this machine
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.host_faults import FAULTS, LOST_AFTER, Run, write_recipe
from tests.multihost.hosts import hosts, missing_requirement

OUT = Path(__file__).parent / "results" / "hosts.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    times = parser.parse_args().times
    if reason := missing_requirement():
        raise SystemExit(f"error: {reason}")
    lines = [
        f"Two hosts, one rank on each, `train.lost_after` = {LOST_AFTER} s; to stop is until nothing runs on any host, "
        "to go on until the first step of the next start.",
        "",
        "| fault | times | lost | seconds to stop: median (most) | seconds to go on: median (most) |",
        "| --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as name:
        recipe = write_recipe(Path(name))
        for number, fault in enumerate(FAULTS):
            stop, go_on, lost = [], [], 0
            for time in range(times):
                folder = Path(name) / f"{number}.{time}"
                with hosts(2, folder / "cluster") as cluster:
                    job = Run(recipe, folder / "run")
                    try:
                        stop.append(job.disturbed(cluster, fault.inject)[1])
                        go_on.append(job.goes_on(cluster, fault.hosts))
                    except AssertionError as error:
                        print(f"{fault.name}: {error}", flush=True)
                        lost += 1
            spread = [f"{median(of):.1f} ({max(of):.1f})" if of else "" for of in (stop, go_on)]
            lines.append(f"| {fault.name} | {times} | {lost} | {spread[0]} | {spread[1]} |")
            print(lines[-1], flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
