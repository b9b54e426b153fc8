"""Finished runs side by side: `launch/compare.py`.

record.py       what a finished run comes to, small enough to be committed
arms.py         runs that differ by their seed alone are one arm; what must not be compared is refused
speedup.py      how much sooner an arm reaches a loss than the first one
inference.py    prefill and decoding, measured in turns
study.py        what a study file says: arms × seeds × budgets
runner.py       makes its runs, each once, by jobs.py; rates.py and budgets.py say what they come to
plots.py        pictures
report.py       tables and notes
writing.py      report.html, report.md and results.json
"""
