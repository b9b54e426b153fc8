"""A row for each host, in columns; what is not known is a dash.

host   slots  GPUs  python  torch   deepspeed  code          disk free  storage  interface    ms   MB/s
node1      8     8  3.11.7  2.13.0  0.19.8     9c1d52ab07e4     712 GB  shared   eth0          –      –
node2      8     8  3.11.7  2.13.0  0.19.8     9c1d52ab07e4     712 GB  shared   eth0       0.08   1178
"""

from collections.abc import Sequence

from dsllm.training.preflight.facts import Host

COLUMNS = ("host", "slots", "GPUs", "python", "torch", "deepspeed", "code", "disk free", "storage", "interface",
           "ms", "MB/s")  # fmt: skip
FIGURES = ("slots", "GPUs", "disk free", "ms", "MB/s")
"""Columns that are aligned to the right."""
UNKNOWN = "–"


def table(hosts: Sequence[Host]) -> str:
    """The lines of the table; ms and MB/s are of the way to the first host."""
    rows = [list(COLUMNS), *(_row(host) for host in hosts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in FIGURES else cell.ljust(width)
            for column, cell, width in zip(COLUMNS, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(host: Host) -> list[str]:
    facts, link = host.facts, host.link
    cells = dict.fromkeys(COLUMNS, UNKNOWN) | {"host": host.name, "slots": str(host.slots)}
    if facts is not None:
        cells |= {
            "GPUs": UNKNOWN if facts.gpus is None else str(facts.gpus),
            "python": facts.python,
            "torch": facts.versions.get("torch") or UNKNOWN,
            "deepspeed": facts.versions.get("deepspeed") or UNKNOWN,
            "code": facts.code or UNKNOWN,
            "disk free": f"{facts.storage.free / 1e9:.0f} GB",
            "storage": "shared" if facts.storage.shared else "own",
            "interface": facts.interface or UNKNOWN,
        }
    if link is not None and link.error is None:
        cells |= {"ms": f"{link.milliseconds:.2f}", "MB/s": f"{link.megabytes_per_second:.0f}"}
    return [cells[column] for column in COLUMNS]
