"""Make all runs of a study, as far as they are not made yet, and compare them.

python launch/study.py STUDY.yaml --out results/NAME [--work runs/NAME] [--ranks 1] [--jobs 1]

What a study file holds stands in dsllm/comparison/study.py. The same command goes on where it was stopped.
"""

import argparse
import signal
from pathlib import Path

from dsllm.command_line import positive
from dsllm.comparison.budgets import tables
from dsllm.comparison.plots import plot_of_budgets, plots_of
from dsllm.comparison.report import Report, markdown, write_report
from dsllm.comparison.runner import Runner
from dsllm.comparison.study import Study
from dsllm.errors import UserError, user_errors_exit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for records and the report; small, to be kept")
    parser.add_argument("--work", type=Path, help="folder for the runs; by default runs/ and the study's name")
    parser.add_argument("--ranks", type=positive, default=1, help="processes of each run")
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side, which share the cores")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with user_errors_exit():
        if arguments.out.exists() and not arguments.out.is_dir():
            raise UserError(f"--out {arguments.out}: a file; name a folder")
        study = Study.read(arguments.study)
        work = arguments.work or Path("runs") / arguments.study.stem
        say = lambda words: print(words, flush=True)  # noqa: E731
        runner = Runner(study, work, arguments.out, arguments.ranks, say, arguments.jobs)
        try:
            found = runner.compared()
        except KeyboardInterrupt:
            print("stopped; the same command goes on", flush=True)
            raise SystemExit(130) from None
        shared = study.shared_budget
        arms = [of[shared] for of in found.values()]
        by_budget = {name: {budget: arm for budget, arm in of.items() if budget} for name, of in found.items()}
        report = Report(
            arguments.study.stem.replace("_", " "),
            arms,
            {**plot_of_budgets(by_budget), **plots_of(arms)},
            tables(by_budget),
            [arm.at(budget) for of in by_budget.values() for budget, arm in of.items() if budget != shared],
        )
        write_report(arguments.out, report)
    print(markdown(report))
    print(arguments.out / "report.html")


if __name__ == "__main__":
    main()
