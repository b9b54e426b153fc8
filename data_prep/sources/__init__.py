"""Where documents come from.

base.py        what a source is
opening.py     a source by what the user calls it
files.py       a file, a folder or a glob
records.py     the documents within a file: JSON lines, parquet, text; compressed or not
installed.py   the sources of installed packages, a corpus that every machine has
hub.py         a data set of the Hugging Face hub, streamed
"""
