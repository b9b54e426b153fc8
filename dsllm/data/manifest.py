"""What a data folder holds: `manifest.json`, written last, so that a folder with a complete manifest is complete.

    DIR/train_00000.bin  train_00000.idx  …  val_00000.bin  val_00000.idx
    DIR/manifest.json
        {"format_version": 1, "complete": true,
         "tokenizer": {"name": "gpt2", "size": 50257, "end_of_text": 50256, "vocab_sha256": "…"},
         "source": {"files": ["…"], "revision": "…", …}, "split_rule": {"hash": "sha256 of the text", "val": 0.005, …},
         "shards": [{"split": "train", "name": "train_00000", "tokens": 1048576, "documents": 812, …}, …]}

The same command gives the same bytes, whether it was interrupted or not: what differs from run to run, such as the
speeds of the preparation, belongs into `rates.json` beside it.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from dsllm.data.files import inside, os_errors_named, write_atomically
from dsllm.errors import DataError
from dsllm.json_file import parse_json

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
RATES_NAME = "rates.json"
LABELS, DEPTHS = "labels", "depths"
"""Streams that may go with the tokens: NAME.labels.bin and .idx, …"""
SHA256 = r"^[0-9a-f]{64}$"
NAME = r"^\w[\w.-]{0,99}$"
"""Of what becomes a part of a file's name: it leads nowhere but into the folder."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerInfo(_Record):
    """Which tokenizer made the tokens; two are the same if their vocabulary hashes and end-of-text ids are."""

    name: str
    """As given to `--tokenizer`: gpt2, bytes, a tiktoken encoding or the name of a tokenizer.json."""
    size: int = Field(gt=0)
    """Symbols of the vocabulary; every token id is below it."""
    end_of_text: int = Field(ge=0)
    """Id of the token that ends each document."""
    vocab_sha256: str = Field(pattern=SHA256)
    """Hash of the vocabulary, by the tokenizer's own definition of it."""

    def same_as(self, other: "TokenizerInfo") -> bool:
        """Whether the two give a text the same tokens; names may differ."""
        return (self.vocab_sha256, self.end_of_text) == (other.vocab_sha256, other.end_of_text)

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} symbols, vocabulary {self.vocab_sha256[:8]})"


class StreamInfo(_Record):
    """A pair of files that goes with a shard's, with as many numbers in as many documents."""

    bin_sha256: str = Field(pattern=SHA256)
    idx_sha256: str = Field(pattern=SHA256)


class ShardInfo(_Record):
    """One pair of files, `name`.bin and `name`.idx."""

    split: str = Field(pattern=NAME)
    """train, val, test, or a split of one's own."""
    name: str = Field(pattern=NAME)
    """File name without its suffix, in the manifest's folder."""
    tokens: int = Field(gt=0)
    """Tokens in `.bin`, end-of-text tokens included."""
    documents: int = Field(gt=0)
    text_bytes: int = Field(ge=0)
    """UTF-8 bytes of the documents' text, from which bits per byte are counted."""
    bin_sha256: str = Field(pattern=SHA256)
    idx_sha256: str = Field(pattern=SHA256)
    parallel: dict[Annotated[str, Field(pattern=NAME)], StreamInfo] = {}
    """What goes with the tokens, by name: labels, depths."""

    @property
    def files(self) -> list[str]:
        """The names of all its files."""
        stems = [self.name, *(f"{self.name}.{stream}" for stream in self.parallel)]
        return [f"{stem}{suffix}" for stem in stems for suffix in (".bin", ".idx")]


class Manifest(_Record):
    """The content of `manifest.json`."""

    format_version: int = FORMAT_VERSION
    complete: bool
    """False while the preparation runs: its shards are whole, but there will be more."""
    tokenizer: TokenizerInfo
    source: dict[str, JsonValue]
    """What was prepared, revision and options included: enough to tell one command from another."""
    split_rule: dict[str, JsonValue]
    """How a document's split follows from its text."""
    shards: list[ShardInfo]
    """In the order in which a split's tokens are read."""

    def shards_of(self, split: str, folder: Path) -> list[ShardInfo]:
        """The shards of one split, in order.

        Raises:
            DataError: the split has none, or the preparation of `folder` has not ended.
        """
        if not self.complete:
            raise DataError(
                f"{folder}: its preparation did not end; run the same `data_prep` command again, it goes on"
            )
        shards = [shard for shard in self.shards if shard.split == split]
        if not shards:
            there = ", ".join(self.splits) or "none"
            raise DataError(
                f"{folder}: no split {split!r}, there are: {there}; prepare it with such a share or more text"
            )
        return shards

    @property
    def splits(self) -> list[str]:
        """The splits that have shards, in order of appearance."""
        return list(dict.fromkeys(shard.split for shard in self.shards))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a data folder.

        Raises:
            DataError: missing, unreadable, not of this format, or of a newer one.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.parent.is_dir() and path.parent.with_name(f"{path.parent.name}.idx").exists():
            beside = path.parent.parent
            cure = f"`python -m data_prep convert {folder} --to megatron --tokenizer NAME --out FOLDER` makes one of it"
            if (beside / MANIFEST_NAME).exists():
                cure = f"give the folder that it lies in, {beside}"
            raise DataError(f"{folder}: a pair of files, not a data folder; {cure}")
        if not path.parent.is_dir():
            raise DataError(
                f"{folder}: no such folder; make it with `python -m data_prep tokenize --source … --out {folder}`"
            )
        if not path.exists():
            raise DataError(f"{path}: missing, so this is no data folder or its preparation did not begin; {_CURE}")
        with os_errors_named(path):
            content = inside(Path(folder), MANIFEST_NAME).read_bytes()
        try:
            record = parse_json(content)
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error}); {_CURE}") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(f"{path}: format {version}, this dsllm reads up to {FORMAT_VERSION}; install a newer dsllm")
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            raise DataError(f"{path}: not a manifest ({problems}); {_CURE}") from None

    def write(self, folder: Path) -> None:
        """Replaces the folder's manifest atomically.

        Raises:
            DataError: the folder cannot be written to; the old manifest stays.
        """
        write_atomically(Path(folder) / MANIFEST_NAME, (self.model_dump_json(indent=1) + "\n").encode())


_CURE = "prepare it with `python -m data_prep tokenize`"


def write_rates(folder: Path, rates: dict[str, float]) -> None:
    """Writes the speeds of a preparation beside its manifest, atomically."""
    write_atomically(Path(folder) / RATES_NAME, (json.dumps(rates, indent=1) + "\n").encode())
