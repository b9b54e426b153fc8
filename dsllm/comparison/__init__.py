"""Finished runs side by side: `launch/compare.py`.

record.py       what a finished run comes to, small enough to be committed
arms.py         runs that differ by their seed alone are one arm; what must not be compared is refused
speedup.py      how much sooner an arm reaches a loss than the first one
inference.py    prefill and decoding, measured in turns
study.py        arms × seeds, each run made once
plots.py        pictures
report.py       report.html, report.md and results.json
"""
