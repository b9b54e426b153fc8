"""A report's files: report.html, report.md, results.json, and the pictures.

The page is one file: the pictures stand in it, nothing is fetched, and what is wider than a telephone scrolls.
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

from dsllm.comparison.report import Report
from dsllm.data.files import os_errors_named, write_atomically


def write_report(out: Path, report: Report) -> None:
    """Write the page, the Markdown, the figures and the pictures into `out`, which is made."""
    with os_errors_named(out):
        out.mkdir(parents=True, exist_ok=True)
    for name, (_, picture) in report.plots.items():
        write_atomically(out / f"{name}.png", picture)
    write_atomically(out / "report.md", markdown(report).encode())
    write_atomically(out / "report.html", page(report).encode())
    results = {arm.name: [run.model_dump(mode="json") for run in arm.runs] for arm in (*report.arms, *report.others)}
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())


def markdown(report: Report) -> str:
    lines = [f"# {report.title}", "", *_lines(report.main), "", *(f"* {note}" for note in report.notes)]
    for more in report.tables:
        lines += ["", f"## {more.title}", "", *_lines(more.rows), "", more.note]
    for name, (caption, _) in report.plots.items():
        lines += ["", f"![{caption}]({name}.png)", "", caption]
    return "\n".join(lines) + "\n"


def _lines(rows: list[list[str]]) -> list[str]:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem; color: #1a1a1a;
       background: #fff }
h1 { font-size: 1.5rem; line-height: 1.2 }
h2 { font-size: 1.2rem; line-height: 1.2; margin: 2rem 0 .7rem }
.scroll { overflow-x: auto; max-width: 100% }
.table { width: fit-content; border: 1px solid #ddd; border-radius: 4px }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eee }
th { background: #f5f5f5; font-weight: 600; white-space: normal; overflow-wrap: anywhere; vertical-align: bottom;
       min-width: 6rem; max-width: 12rem }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #f5f5f5; white-space: normal;
       overflow-wrap: anywhere; min-width: 7rem; max-width: 11rem }
.words th, .words td { text-align: left; white-space: normal; vertical-align: top; max-width: none }
.words td:not(:first-child) { overflow-wrap: anywhere }
figure { margin: 2rem 0 0 }
img { min-width: 40rem; max-width: 100%; height: auto; display: block }
figcaption { color: #555; font-size: .875rem }
"""


def page(report: Report) -> str:
    """The page, self-contained."""
    pictures = "\n".join(
        f'<figure><div class="scroll"><img alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in report.plots.values()
    )
    said = "\n".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    more = "".join(
        f"<h2>{html.escape(of.title)}</h2>\n{_grid(of.rows, of.words)}<p>{html.escape(of.note)}</p>\n"
        for of in report.tables
    )
    title = html.escape(report.title)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
        f"{_grid(report.main)}<ul>\n{said}\n</ul>\n{more}{pictures}\n</html>\n"
    )


def _grid(rows: list[list[str]], words: bool = False) -> str:
    """A table that scrolls where it is wider than the page."""

    def name(cell: str) -> str:
        return html.escape(cell).replace("_", "_<wbr>")  # an arm's may be broken there

    def row(cells: Sequence[str]) -> str:
        first, *rest = cells
        return "".join(f"<td>{cell}</td>" for cell in (name(first), *map(html.escape, rest)))

    head = "".join(f"<th>{name(cell)}</th>" for cell in rows[0])
    body = "\n".join(f"<tr>{row(cells)}</tr>" for cells in rows[1:])
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll table"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
        "</div>\n"
    )
