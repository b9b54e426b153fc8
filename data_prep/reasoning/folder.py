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
from data_prep.reasoning.request import ProblemRequest
from data_prep.reasoning.selection import problems_of
from data_prep.reasoning.task import Array, Problems
from dsllm.data.batches import NO_TARGET
from dsllm.data.files import os_errors_named, write_atomically
from dsllm.data.indexed import IndexedWriter, token_dtype
from dsllm.data.manifest import DEPTHS, LABELS, MANIFEST_NAME, Manifest, ShardInfo, StreamInfo, write_rates
from dsllm.errors import DataError
from dsllm.tokenizer import Tokenizer, load_tokenizer
from dsllm.tokenizer.hugging_face import TOKENIZER_FILE, HuggingFaceTokenizer

DRAFT = ".making"


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


def _write(
    request: ProblemRequest, out: Path, tokenizer: Tokenizer, progress: Progress
) -> tuple[list[ShardInfo], dict[str, JsonValue]]:
    """One shard for each split, and how many problems each has by length."""
    shards: list[ShardInfo] = []
    counts: dict[str, Any] = {}
    for split in dict.fromkeys(split for split, _, _ in request.wanted()):
        with _Shard(out / f"{split}_00000", request, tokenizer) as shard:
            for _, length, count in (wanted for wanted in request.wanted() if wanted[0] == split):
                for problems in problems_of(request.task, request.seed, split, length, count):
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
