"""Make all runs of a study, as far as they are not made yet, and compare them.

python launch/study.py STUDY.yaml ... --out results/NAME [--work runs/NAME] [--ranks 1] [--jobs 1]

What a study file holds stands in dsllm/comparison/study.py. Of several studies each has a folder of its own in --out
and in --work. The same command goes on where it was stopped.
"""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dsllm.command_line import CommandLine, named_path, positive
from dsllm.comparison.arms import Arm
from dsllm.comparison.budgets import tables
from dsllm.comparison.plots import plot_of_budgets, plots_of
from dsllm.comparison.rates import rates_table
from dsllm.comparison.report import Report, Table
from dsllm.comparison.runner import Runner
from dsllm.comparison.study import Study
from dsllm.comparison.writing import markdown, write_report
from dsllm.errors import UserError, user_errors_exit

Found = Mapping[str, Mapping[float | None, Arm]]


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("studies", type=Path, nargs="+", metavar="STUDY.yaml")
    parser.add_argument(
        "--out", type=named_path, required=True, help="folder for records and the report; small, to keep"
    )
    parser.add_argument("--work", type=named_path, help="folder for the runs; by default runs/ and the study's name")
    parser.add_argument("--ranks", type=positive, default=1, help="processes of each run")
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side, which share the cores")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with user_errors_exit():
        if arguments.out.exists() and not arguments.out.is_dir():
            raise UserError(f"--out {arguments.out}: a file; name a folder")
        studies = {path.stem: Study.read(path) for path in arguments.studies}
        if len(studies) < len(arguments.studies):
            raise UserError("two study files of one name; give them different names")
        for name, study in studies.items():
            own = name if len(studies) > 1 else ""
            out = arguments.out / own
            work = arguments.work / own if arguments.work else Path("runs") / name
            runner = Runner(study, work, out, arguments.ranks, _say, arguments.jobs)
            try:
                found = runner.compared()
            except KeyboardInterrupt:
                print("stopped; the same command goes on", flush=True)
                raise SystemExit(130) from None
            report = _report(name.replace("_", " "), study, found, runner)
            write_report(out, report)
            print(markdown(report))
            print(out / "report.html")


def _say(words: str) -> None:
    print(words, flush=True)


def _report(title: str, study: Study, found: Found, runner: Runner) -> Report:
    """The arms at the budget that all share, and what their further budgets say."""
    shared = study.shared_budget
    arms = [of[shared] for of in found.values() if shared in of]
    by_budget = {name: {budget: arm for budget, arm in of.items() if budget} for name, of in found.items() if of}
    others = [arm.at(budget) for of in by_budget.values() for budget, arm in of.items() if budget != shared]
    more = [*tables(by_budget), *([rates_table(runner.tried)] if runner.tried else []), _settings(study)]
    plots = {**plot_of_budgets(by_budget), **plots_of(arms)}
    baseline = next(iter(by_budget.values()), {})
    remarks, in_training = _remarks(study, runner), len(baseline) < 2
    return Report(title, arms, plots, more, remarks=remarks, in_training=in_training, others=others)


def _remarks(study: Study, runner: Runner) -> list[str]:
    seeds = f"Seeds {', '.join(map(str, study.seeds))}"
    said = [f"{seeds}; {study.shared_budget:g} training FLOPs a run." if study.shared_budget else f"{seeds}."]
    if runner.diverged:
        said.append(f"Diverged, and left out: {', '.join(wanted.name for wanted in runner.diverged)}.")
    return said


def _settings(study: Study) -> Table:
    """What an arm is: what it changes in the recipe."""
    rows = [[arm, _flow(changes)] for arm, changes in study.arms.items()]
    alike = f"; all of them change {_flow(study.set)}" if study.set else ""
    return Table("The arms", [["arm", "settings"], *rows], f"What each arm changes in {study.base}{alike}.", words=True)


def _flow(changes: Mapping[str, Any]) -> str:
    """As in a study file, in one line."""
    return str(yaml.safe_dump(changes, default_flow_style=True, sort_keys=False, width=10**6)).strip()


if __name__ == "__main__":
    main()
