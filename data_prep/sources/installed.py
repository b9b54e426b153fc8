"""The sources and documentation of installed packages: real text that every machine has.

installed:sympy,mpmath,networkx        2,201 files, 35 MB of mathematics and Python
"""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from pydantic import JsonValue

from data_prep.sources.files import FileSource, names_below
from dsllm.errors import DataError

PREFIX = "installed:"
SUFFIXES = (".py", ".rst", ".md", ".txt")


class InstalledSource(FileSource):
    """The .py, .rst, .md and .txt files of packages, sorted by name; empty ones and bytecode are not among them.

    Raises:
        DataError: a package is not installed.
    """

    def __init__(self, name: str) -> None:
        packages = [package.strip() for package in name.removeprefix(PREFIX).split(",") if package.strip()]
        if not packages:
            raise DataError(f"{name}: no package named; write for example {PREFIX}sympy,mpmath")
        found = [(file, label) for package in packages for file, label in _files(package)]
        super().__init__([file for file, _ in found], [label for _, label in found], fields=())
        self._identity["versions"] = {package: _version(package) for package in packages}


def _files(package: str) -> Iterator[tuple[Path, str]]:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{PREFIX}{package}: no such package here; `pip install {package}` or name another")
    root = Path(next(iter(spec.submodule_search_locations)))
    names = sorted(name for name in names_below(root) if os.path.splitext(name)[1] in SUFFIXES)
    return ((root / name, f"{package}/{name}") for name in names)


def _version(package: str) -> JsonValue:
    try:
        return version(package)
    except PackageNotFoundError:
        # The distribution may have another name than the package; the mapping is slow, hence not first.
        distributions = packages_distributions().get(package, [])
        return version(distributions[0]) if distributions else None
