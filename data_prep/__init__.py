"""Text to token shards, on the command line.

    python -m data_prep tokenize --source notes/ --out data/notes

cli.py, __main__.py     the commands
sources/                where documents come from: files, installed packages, the hub
batches.py              documents in groups, and what becomes of unusable ones
encoding.py, fast.py    groups to tokens in parallel, in order; gigatoken held against tiktoken
splits.py               which split a document belongs to
prepare.py, journal.py  one run from source to folder; where it goes on after a kill
shard_set.py            the files that are open at a time
progress.py             bar and rates
flags.py                what the commands share
reasoning/              problems with chains of known length, made and labelled
convert.py, inspect.py  other projects' formats; a folder's first documents
"""
