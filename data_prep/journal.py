"""Where an interrupted preparation goes on.

    DIR/journal.json         replaced atomically after each set of shards; gone when the folder is complete
        manifest             so far: the command, and the shards that are whole
        position             of the source, behind the last document in them
        sets                 how many sets that is
        fast                 whether gigatoken may be used

A kill leaves, besides those shards, files that the journal does not know: the next run removes them and goes on from
the position. The order of steps makes each moment safe: shards get their names, then the journal counts them, then, at
the end, the manifest says complete, then the journal goes.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from data_prep.splits import NAMES
from dsllm.data.files import inside, os_errors_named, write_atomically
from dsllm.data.manifest import DEPTHS, LABELS, MANIFEST_NAME, RATES_NAME, Manifest, ShardInfo
from dsllm.errors import DataError, shown
from dsllm.json_file import parse_json
from dsllm.tokenizer.hugging_face import CONFIG_FILE, TOKENIZER_FILE

JOURNAL_NAME = "journal.json"
SPLITS = (*NAMES, "beyond")
OURS = re.compile(rf"(?:{'|'.join(SPLITS)})_\d{{5,}}(?:\.(?:{LABELS}|{DEPTHS}))?\.(?:bin|idx)")
SIDE_FILES = (JOURNAL_NAME, MANIFEST_NAME, RATES_NAME, TOKENIZER_FILE, CONFIG_FILE)


class Journal(BaseModel):
    """The content of `journal.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Manifest
    position: JsonValue = None
    sets: int = 0
    fast: bool = True

    @classmethod
    def read(cls, folder: Path) -> "Journal | None":
        """The journal of a folder, or None.

        Raises:
            DataError: it cannot be read, or another program wrote it.
        """
        path = folder / JOURNAL_NAME
        if not path.exists():
            return None
        with os_errors_named(path):
            content = inside(folder, JOURNAL_NAME).read_bytes()
        try:
            journal = cls.model_validate_json(content)
            if journal.sets < 0 or min(journal.counts.values(), default=0) < 0:
                raise ValueError("a negative count")
            return journal
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path}: not a journal of this version of data_prep; start over with --fresh, or take another --out"
            ) from None

    @property
    def counts(self) -> dict[str, int]:
        """Documents that were read, empty and skipped, up to the position."""
        counts = self.manifest.source["counts"]
        if not isinstance(counts, dict) or counts.keys() != {"read", "empty", "skipped"}:
            raise ValueError(f"{shown(counts)} are no counts of documents")
        return {name: int(str(number)) for name, number in counts.items()}

    def after(self, shards: list[ShardInfo], position: JsonValue, counts: dict[str, int]) -> "Journal":
        """The journal behind one more set."""
        source: dict[str, JsonValue] = {**self.manifest.source, "counts": dict(counts)}
        manifest = self.manifest.model_copy(update={"shards": [*self.manifest.shards, *shards], "source": source})
        return self.model_copy(update={"manifest": manifest, "position": position, "sets": self.sets + 1})

    def write(self, folder: Path) -> None:
        """Replaces the folder's journal atomically."""
        write_atomically(folder / JOURNAL_NAME, self.model_dump_json().encode())


def differences(then: Manifest, now: Manifest) -> list[str]:
    """What the command of a folder and another command differ in: one line each, empty if they are the same."""
    found = []
    if not then.tokenizer.same_as(now.tokenizer):
        found.append(f"tokenizer: {then.tokenizer} then, {now.tokenizer} now")
    old, new = ({**manifest.source, **manifest.split_rule} for manifest in (then, now))
    for key in {**old, **new}:
        # What went through strictly comes out the same under a milder policy, so a run may go on with one.
        milder = key == "errors" and old.get(key) == "strict" and not then.complete
        if key != "counts" and old.get(key) != new.get(key) and not milder:
            found.append(f"{key}: {old.get(key)} then, {new.get(key)} now")
    return found


def was_prepared(folder: Path) -> bool:
    """Whether a preparation, of this version or another, wrote the folder's manifest or journal."""
    return any(map(_is_record, (folder / MANIFEST_NAME, folder / JOURNAL_NAME)))


def _is_record(path: Path) -> bool:
    """Whether a file is a manifest or a journal, which carries one, rather than another program's under that name."""
    if not path.exists():
        return False
    with os_errors_named(path):
        content = path.read_bytes()
    try:
        record = parse_json(content)
    except ValueError:
        return False
    if isinstance(record, dict):
        record = record.get("manifest", record)
    return isinstance(record, dict) and {"format_version", "shards"} <= record.keys()


def remove_unknown(folder: Path, known: Manifest) -> None:
    """Removes drafts and token files under our names that the manifest does not know; before the first shard, side
    files of an earlier preparation too."""
    names = {f"{shard.name}{suffix}" for shard in known.shards for suffix in (".bin", ".idx")}
    kept = SIDE_FILES if known.shards else (JOURNAL_NAME, MANIFEST_NAME)
    for file in list(folder.iterdir()):
        name = file.name.removesuffix(".tmp")
        if (is_ours(name) or name in SIDE_FILES) and file.name not in names and file.name not in kept:
            with os_errors_named(file):
                file.unlink()


def remove_everything(folder: Path) -> None:
    """Removes what a preparation writes into a folder, and nothing else; the journal last, so that the same command
    can go on from any moment within."""
    last = ("", MANIFEST_NAME, JOURNAL_NAME)
    for file in sorted(folder.iterdir(), key=lambda file: last.index(file.name) if file.name in last else 0):
        name = file.name.removesuffix(".tmp")
        if is_ours(name) or name in SIDE_FILES:
            with os_errors_named(file):
                file.unlink()


def is_ours(name: str) -> bool:
    """Whether a preparation gives its token files such names."""
    return OURS.fullmatch(name) is not None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other preparation can work on the folder.

    Raises:
        DataError: one does, or the folder cannot be opened.
    """
    with os_errors_named(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{folder}: another preparation is writing there; wait for it or stop it") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def made_folder(out: Path) -> Iterator[None]:
    """Makes the folder and its parents; after an error those made here are gone again if nothing is in them."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    with os_errors_named(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise
