"""A data folder of problems: tokens, and beside them the labels and the lengths of the chains.

    DIR/train_00000.{bin,idx}           tokens, a document for each problem, as of any data folder
    DIR/train_00000.labels.{bin,idx}    int32, as many: what is to be said at each position, -100 where nothing is asked
    DIR/train_00000.depths.{bin,idx}    uint16, as many: where an answer ends, the length of its chain, else 0
    DIR/val_…  test_…                   of the same lengths as train
    DIR/beyond_…                        of longer chains, to be tested on
    DIR/tokenizer.json  manifest.json

A problem's split follows from its tokens alone, so that no problem is in two; those of val, test and beyond differ from
each other, too. Short chains may have fewer problems than were asked for. All is made in DIR/.making and moved when it
is whole: until then DIR is what it was.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import JsonValue
from tokenizers import Regex
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit

from data_prep.journal import SIDE_FILES, differences, is_ours, locked, made_folder, was_prepared
from data_prep.progress import Progress
from data_prep.reasoning.task import Array, Problems, Task
from dsllm.data.batches import NO_TARGET
from dsllm.data.files import os_errors_named, write_atomically
from dsllm.data.indexed import IndexedWriter, token_dtype
from dsllm.data.manifest import DEPTHS, LABELS, MANIFEST_NAME, Manifest, ShardInfo, StreamInfo, write_rates
from dsllm.errors import DataError
from dsllm.tokenizer import Tokenizer, load_tokenizer
from dsllm.tokenizer.hugging_face import TOKENIZER_FILE, HuggingFaceTokenizer

SHARES = {"train": range(2, 16), "val": range(1), "test": range(1, 2), "beyond": range(16)}
"""By split, the sixteenths of all problems that belong to it; chains beyond training are in no other split anyway."""
BLOCK_TOKENS = 1 << 16
"""Tokens that are made at a time; part of what a seed means."""
DRAFT = ".making"
PATIENCE = 8
"""Blocks in a row without a new problem, after which there are no more."""


@dataclass(frozen=True)
class ProblemRequest:
    """What the user asked for; equal requests give equal bytes."""

    task: Task
    lengths: range
    """Chain lengths to train on."""
    beyond: range
    """Longer ones, maybe none."""
    documents: int
    """Problems to train on, as many of each length."""
    held_out: int
    """Problems of each length in val, test and beyond."""
    seed: int = 0
    vocabulary: str = "small"

    def check(self) -> None:
        """Raises `DataError` with the first thing that is wrong."""
        for flag, lengths in (("lengths", self.lengths), ("beyond", self.beyond)):
            if len(lengths) and lengths[-1] > self.task.longest:
                raise DataError(
                    f"--{flag} {lengths[0]}-{lengths[-1]}: the longest chain of {self.task.name} with these options "
                    f"is {self.task.longest}"
                )
        if len(self.beyond) and self.beyond[0] <= self.lengths[-1]:
            raise DataError(f"--beyond {self.beyond[0]}-{self.beyond[-1]}: must begin after {self.lengths[-1]}")
        for flag, number in (("documents", self.documents), ("held_out", self.held_out)):
            if number < 1:
                raise DataError(f"--{flag} {number}: must be at least 1")
        if self.seed < 0:
            raise DataError(f"--seed {self.seed}: must be 0 or more")
        if self.vocabulary not in ("small", "bytes"):
            raise DataError(f"--vocabulary {self.vocabulary}: no such vocabulary; take small or bytes")
        if self.vocabulary == "bytes" and not self.task.written:
            raise DataError(f"--vocabulary bytes: the words of {self.task.name} are no characters; take small")

    def wanted(self) -> Iterator[tuple[str, int, int]]:
        """Split, chain length and how many problems, in the order in which they are written."""
        for number, length in enumerate(self.lengths):
            # What does not come out even goes to the first lengths.
            yield "train", length, (self.documents - number - 1) // len(self.lengths) + 1
        for split in ("val", "test"):
            yield from ((split, length, self.held_out) for length in self.lengths)
        yield from (("beyond", length, self.held_out) for length in self.beyond)

    def manifest(self, tokenizer: Tokenizer) -> Manifest:
        """Of a folder that has just begun."""
        longest = max(*self.lengths, *self.beyond, 1)
        source: dict[str, JsonValue] = {
            "source": f"reasoning:{self.task.name}",
            **self.task.model_dump(mode="json"),
            "lengths": [self.lengths[0], self.lengths[-1]],
            "beyond": [self.beyond[0], self.beyond[-1]] if len(self.beyond) else None,
            "documents": self.documents,
            "held_out": self.held_out,
            "seed": self.seed,
            "vocabulary": self.vocabulary,
            "chance": {str(length): self.task.chance(length) for length in range(1, longest + 1)},
        }
        rule: dict[str, JsonValue] = {"hash": "of the tokens", "train": 14 / 16, "val": 1 / 16, "test": 1 / 16}
        return Manifest(complete=False, tokenizer=tokenizer.info, source=source, split_rule=rule, shards=[])


def make_problems(
    request: ProblemRequest, out: Path, *, fresh: bool = False, show: bool | None = None
) -> Progress | None:
    """Makes `out` the data folder of a request; None if it is that already. Stopped, it begins anew.

    Raises:
        DataError: a request that contradicts itself, or a folder that holds something else.
    """
    request.check()
    with made_folder(out), locked(out):
        draft = out / DRAFT
        try:
            tokenizer, definition = _tokenizer(request, draft)
            manifest = request.manifest(tokenizer)
            if _is_done(out, manifest, fresh):
                return None
            with Progress(show=show) as progress:
                _make_draft(draft)
                if definition:
                    write_atomically(draft / TOKENIZER_FILE, definition)
                shards, counts = _write(request, draft, tokenizer, progress)
            write_rates(draft, progress.rates)
            source: dict[str, JsonValue] = {**manifest.source, "problems": counts}
            _put_in_place(draft, out, manifest)
            manifest.model_copy(update={"complete": True, "shards": shards, "source": source}).write(out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return progress


def _make_draft(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
    with os_errors_named(draft):
        draft.mkdir()


def _put_in_place(draft: Path, out: Path, manifest: Manifest) -> None:
    """Replace what a preparation left in `out` by the draft's files; killed in its midst, the folder says so."""
    if was_prepared(out):
        manifest.write(out)  # which is not complete
        for file in out.iterdir():
            if is_ours(file.name) or (file.name in SIDE_FILES and file.name != MANIFEST_NAME):
                with os_errors_named(file):
                    file.unlink()
    for file in draft.iterdir():
        with os_errors_named(file):
            file.replace(out / file.name)


def problems_of(request: ProblemRequest, split: str, length: int, count: int) -> Iterator[Problems]:
    """Up to `count` problems of a split and a chain length, block by block."""
    per_block = max(1, BLOCK_TOKENS // request.task.generate(length, 1, np.random.default_rng(0)).tokens.shape[1])
    seen, left, dry, block = np.zeros(0, np.uint64), count, 0, 0
    while left and dry < PATIENCE:
        rng = np.random.default_rng([request.seed, list(SHARES).index(split), length, block])
        made = request.task.generate(length, per_block, rng)
        hashes, of_split = _hashes(made.tokens), _hashes(made.tokens[:, : request.task.split_tokens])
        mine = np.isin(of_split >> np.uint64(60), np.array(SHARES[split], np.uint64))
        kept = np.flatnonzero(mine & made.depths.any(axis=1))  # some ask for nothing
        if split != "train":
            first = np.unique(hashes[kept], return_index=True)[1]
            kept = np.sort(kept[first])
            kept = kept[~np.isin(hashes[kept], seen)]
            seen = np.concatenate([seen, hashes[kept[:left]]])
        kept = kept[:left]
        left, block, dry = left - len(kept), block + 1, 0 if len(kept) else dry + 1
        if len(kept):
            yield Problems(*(part[kept] for part in made))


def _write(
    request: ProblemRequest, out: Path, tokenizer: Tokenizer, progress: Progress
) -> tuple[list[ShardInfo], dict[str, JsonValue]]:
    """One shard for each split, and how many problems each has by length."""
    shards: list[ShardInfo] = []
    counts: dict[str, Any] = {}
    for split in dict.fromkeys(split for split, _, _ in request.wanted()):
        with _Shard(out / f"{split}_00000", request, tokenizer) as shard:
            for _, length, count in (wanted for wanted in request.wanted() if wanted[0] == split):
                for problems in problems_of(request, split, length, count):
                    progress.add(*shard.add(problems))
                    by_length = counts.setdefault(split, {})
                    by_length[str(length)] = by_length.get(str(length), 0) + len(problems.tokens)
            if split not in counts:
                raise DataError(
                    f"--lengths {request.lengths[0]}-{request.lengths[-1]}: so few problems that none falls to "
                    f"{split}; take longer chains, or options that allow more of them"
                )
            shards.append(shard.finish(split))
    return shards, counts


class _Shard:
    """The three pairs of a shard, while they are written."""

    def __init__(self, prefix: Path, request: ProblemRequest, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._prefix, self._text_bytes = tokenizer, prefix, 0
        self._ids, self._token_bytes = _ids_in(request, tokenizer), tokenizer.token_bytes()
        beside: dict[str, np.dtype[Any]] = {LABELS: np.dtype(np.int32), DEPTHS: np.dtype(np.uint16)}
        self._tokens = IndexedWriter(prefix, token_dtype(tokenizer.size))
        self._beside = {
            name: IndexedWriter(prefix.with_name(f"{prefix.name}.{name}"), dtype, signed=name == LABELS)
            for name, dtype in beside.items()
        }

    def add(self, problems: Problems) -> tuple[int, int, int]:
        """Gives how many problems, bytes of text and tokens they are."""
        tokens = self._ids[problems.tokens]
        labels = np.where(problems.labels == NO_TARGET, NO_TARGET, self._ids[np.maximum(problems.labels, 0)])
        rows, size = tokens.shape
        for writer, part, end in (
            (self._tokens, tokens, self._tokenizer.end_of_text),
            (self._beside[LABELS], labels, NO_TARGET),
            (self._beside[DEPTHS], problems.depths, 0),
        ):
            writer.add_many(np.pad(part, ((0, 0), (0, 1)), constant_values=end).ravel(), np.full(rows, size + 1))
        text_bytes = int(self._token_bytes[tokens].sum())
        self._text_bytes += text_bytes
        return rows, text_bytes, rows * (size + 1)

    def finish(self, split: str) -> ShardInfo:
        beside = {name: writer.finish() for name, writer in self._beside.items()}
        written = self._tokens.finish()
        return ShardInfo(
            split=split,
            name=self._prefix.name,
            tokens=written.tokens,
            documents=written.documents,
            text_bytes=self._text_bytes,
            bin_sha256=written.bin_sha256,
            idx_sha256=written.idx_sha256,
            parallel={
                name: StreamInfo(bin_sha256=of.bin_sha256, idx_sha256=of.idx_sha256) for name, of in beside.items()
            },
        )

    def __enter__(self) -> "_Shard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in (self._tokens, *self._beside.values()):
            writer.abort()


def _is_done(out: Path, manifest: Manifest, fresh: bool) -> bool:
    """Whether the folder holds what is asked for. Raises `DataError` if it holds something else, and not `fresh`."""
    if not was_prepared(out):
        strangers = sorted(file.name for file in out.iterdir() if is_ours(file.name) or file.name in SIDE_FILES)
        if strangers:
            raise DataError(f"{out}: holds {strangers[0]}, but no manifest of data_prep; take another --out")
        return False
    if fresh:
        return False
    earlier = Manifest.read(out)
    then = earlier.model_copy(update={"source": {k: v for k, v in earlier.source.items() if k != "problems"}})
    if found := differences(then, manifest):
        raise DataError(
            f"{out}: holds data of another command ({'; '.join(found)}); take another --out, or --fresh to replace them"
        )
    return earlier.complete


def _tokenizer(request: ProblemRequest, out: Path) -> tuple[Tokenizer, bytes]:
    """The tokenizer, and the file to be kept with the tokens; none for bytes."""
    if request.vocabulary == "bytes":
        return load_tokenizer("bytes"), b""
    vocabulary = {word: i for i, word in enumerate([*request.task.words, "<unknown>"])}
    backend = Backend(WordLevel(vocabulary, unk_token="<unknown>"))
    if request.task.written:
        backend.pre_tokenizer = Split(Regex("."), behavior="isolated")  # type: ignore[assignment]
        backend.decoder = Fuse()  # type: ignore[assignment]
    else:
        backend.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    backend.add_special_tokens(["<|endoftext|>"])
    definition = backend.to_str().encode()
    return HuggingFaceTokenizer(out / TOKENIZER_FILE, definition), definition


def _ids_in(request: ProblemRequest, tokenizer: Tokenizer) -> Array:
    """The token of each of the task's words: (words,)."""
    if request.vocabulary == "small":
        return np.arange(len(request.task.words))
    return np.array([int(tokenizer.encode(word)[0]) for word in request.task.words])


def _hashes(tokens: Array) -> np.ndarray:
    """A number for each row, by its content alone: (rows,) uint64. The end mixes as SplitMix64 does."""
    value = np.zeros(len(tokens), np.uint64)
    for column in tokens.T.astype(np.uint64):
        value = (value ^ (column + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
