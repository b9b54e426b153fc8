"""Compare finished runs: a table and plots, as a page, as Markdown and as figures.

python launch/compare.py RUN RUN ... --out report/
    RUN: a folder that launch/train.py wrote, or a file of an earlier --records. Runs that differ by their seed alone
    are one arm, with mean and deviation. The first arm is the baseline of speedups.
"""

from pathlib import Path

from dsllm.command_line import CommandLine, named_path
from dsllm.comparison.arms import arms_of, of_one_data
from dsllm.comparison.measuring import measured
from dsllm.comparison.plots import plots_of
from dsllm.comparison.record import RunRecord
from dsllm.comparison.report import Report, notes, table
from dsllm.comparison.writing import write_report
from dsllm.data.files import os_errors_named
from dsllm.errors import UserError, user_errors_exit


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("runs", type=named_path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=named_path, required=True, help="folder for the report and its figures")
    parser.add_argument("--title", default="Comparison of runs")
    parser.add_argument(
        "--records", type=named_path, help="folder for a small file of each run, which stands for it later"
    )
    parser.add_argument("--data_by_seed", action="store_true", help="each seed has data of its own, alike for all arms")
    parser.add_argument("--no_inference", action="store_true", help="do not measure prefill, decoding and phases")
    arguments = parser.parse_args()
    with user_errors_exit("stopped"):
        if arguments.out.exists() and not arguments.out.is_dir():
            raise UserError(f"--out {arguments.out}: a file; name a folder")
        read = [RunRecord.read(path) for path in arguments.runs]
        records = of_one_data(read) if arguments.data_by_seed else read
        arms_of(records)  # what must not be compared is said before anything is measured
        if not arguments.no_inference:
            folders = dict(zip(map(id, records), arguments.runs, strict=True))
            firsts = {str(id(arm.first)): arm.first for arm in arms_of(records)}
            there = {key: folders[id(of)] for key, of in firsts.items() if folders[id(of)].is_dir()}
            found = measured(firsts, there)
            records = [found.get(str(id(record)), record) for record in records]
        arms = arms_of(records)
        write_report(arguments.out, Report(arguments.title, arms, plots_of(arms)))
        if arguments.records is not None:
            kept = [run.of_data(was.scored.data) for run, was in zip(records, read, strict=True)]
            _keep(kept, arguments.records)
        _show(table(arms))
        print("\n".join(notes(arms)))
        print(f"{arguments.out / 'report.html'}")


def _keep(records: list[RunRecord], folder: Path) -> None:
    """A file for each run, by its name; by its folder's too, where runs of several have one name."""
    names = [record.name for record in records]
    if len(set(names)) < len(names):
        names = [f"{record.group}_{record.name}" for record in records]
    if len(set(names)) < len(names):
        raise UserError(f"--records: several runs are called {max(names, key=names.count)}; give their folders names")
    with os_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, record in zip(names, records, strict=True):
        record.write(folder / f"{name}.json")


def _show(rows: list[list[str]]) -> None:
    """The table, each column as wide as it needs."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        shown = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([f"{name:{widths[0]}}", *shown]))


if __name__ == "__main__":
    main()
