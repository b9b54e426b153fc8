"""Make all runs of a study, as far as they are not made yet, and compare them.

python launch/study.py STUDY.yaml --out results/NAME [--work runs/NAME] [--ranks 1]

What a study file holds stands in dsllm/comparison/study.py. The same command goes on where it was stopped.
"""

import argparse
from pathlib import Path

from dsllm.command_line import positive
from dsllm.comparison.arms import arms_of
from dsllm.comparison.plots import plots_of
from dsllm.comparison.report import markdown, write_report
from dsllm.comparison.study import Runner, Study, named
from dsllm.errors import UserError, user_errors_exit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for records and the report; small, to be kept")
    parser.add_argument("--work", type=Path, help="folder for the runs; by default runs/ and the study's name")
    parser.add_argument("--ranks", type=positive, default=1, help="processes of each run")
    arguments = parser.parse_args()
    with user_errors_exit():
        if arguments.out.exists() and not arguments.out.is_dir():
            raise UserError(f"--out {arguments.out}: a file; name a folder")
        study = Study.read(arguments.study)
        work = arguments.work or Path("runs") / arguments.study.stem
        runner = Runner(study, work, arguments.out, arguments.ranks, lambda words: print(words, flush=True))
        try:
            arms = arms_of(list(named(runner.all())))
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        title = arguments.study.stem.replace("_", " ")
        plots = plots_of(arms)
        write_report(arguments.out, arms, plots, title)
    print(markdown(arms, {}, title))
    print(arguments.out / "report.html")


if __name__ == "__main__":
    main()
