"""A source by what the user calls it.

open-web-math, maths-college       presets: a data set of the hub with its text columns
installed:sympy,mpmath             the sources of installed packages
notes/, notes.jsonl, 'n/*.md'      a folder, a file, a glob
org/name                           any data set of the hub
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pydantic import JsonValue

from data_prep.sources.base import Source
from data_prep.sources.files import TEXT, is_pattern, local_files
from data_prep.sources.hub import hub_dataset
from data_prep.sources.installed import PREFIX, InstalledSource
from data_prep.sources.records import JSON_LINES, PARQUET, content_suffix
from dsllm.errors import DataError


@dataclass(frozen=True)
class Preset:
    """A data set of the hub with a short name."""

    name: str
    fields: tuple[str, ...]


PRESETS = {
    "open-web-math": Preset("open-web-math/open-web-math", ("text",)),
    "maths-college": Preset("ajibawa-2023/Maths-College", ("instruction", "output")),
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DEFAULT_FIELDS = ("text",)


def open_source(
    name: str,
    *,
    fields: tuple[str, ...] | None = None,
    revision: str | None = None,
    subset: str | None = None,
    source_split: str = "train",
    recorded: dict[str, JsonValue] | None = None,
) -> Source:
    """
    Args:
        name: as above; what exists here as a file or folder is not looked for on the hub.
        fields: columns that make up the text; by default the preset's, else `text`.
        revision, subset, source_split: of a data set of the hub.
        recorded: the identity of the run that this one continues.

    Raises:
        DataError: no such source, or nothing to read in it.
    """
    if name.startswith(PREFIX):
        return InstalledSource(name)
    if name not in PRESETS and (Path(name).exists() or is_pattern(name)):
        return local_files(name, fields or DEFAULT_FIELDS)
    preset = PRESETS.get(name)
    looks_local = content_suffix(Path(name)) in {*TEXT, *JSON_LINES, PARQUET} or name.startswith(("/", ".", "~"))
    if preset is None and (looks_local or not HUB_NAME.fullmatch(name)):
        close = get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"presets: {', '.join(PRESETS)}; or org/name for the hub"
        raise DataError(f"source {name!r}: no such file, folder or data set; {hint}")
    return hub_dataset(
        preset.name if preset else name,
        fields or (preset.fields if preset else DEFAULT_FIELDS),
        revision=revision,
        subset=subset,
        split=source_split,
        recorded=recorded,
    )
