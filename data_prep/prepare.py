"""One preparation, from a source to a complete data folder, through any number of interruptions.

check      options, tokenizer, source: nothing is written before all of them are good
go on      an unfinished folder of the same command, from its journal; a complete one is left as it is
work       groups of documents → tokens → a set of shards → journal, until the source ends
complete   rates, manifest, and the journal goes
"""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from data_prep.batches import ErrorPolicy, batches
from data_prep.encoding import EncodedBatch, encode_batches
from data_prep.fast import BatchEncoder, DisagreementError, fastest_encoder
from data_prep.journal import (
    JOURNAL_NAME,
    SIDE_FILES,
    Journal,
    differences,
    is_ours,
    locked,
    made_folder,
    remove_everything,
    remove_unknown,
    was_prepared,
)
from data_prep.progress import Progress
from data_prep.shard_set import ShardSet
from data_prep.sources.base import Source
from data_prep.sources.installed import PREFIX
from data_prep.sources.opening import open_source
from data_prep.splits import SplitRule
from dsllm.data.files import write_atomically
from dsllm.data.manifest import MANIFEST_NAME, Manifest, write_rates
from dsllm.errors import DataError
from dsllm.tokenizer import Tokenizer, load_tokenizer
from dsllm.tokenizer.hugging_face import CONFIG_FILE, TOKENIZER_FILE, HuggingFaceTokenizer

BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """What the user asked for; equal requests on equal sources give equal bytes."""

    source: str
    tokenizer: str = "gpt2"
    fields: tuple[str, ...] | None = None
    splits: tuple[float, ...] = (0.8, 0.1, 0.1)
    shard_tokens: int = 100_000_000
    """A set of shards, all splits together, ends with the group of documents that reaches this number."""
    limit_documents: int | None = None
    errors: ErrorPolicy | None = None
    """strict by default; skip for installed packages, which may carry files for tests of bad encodings."""
    revision: str | None = None
    subset: str | None = None
    source_split: str = "train"

    @property
    def policy(self) -> ErrorPolicy:
        return self.errors or ("skip" if self.source.startswith(PREFIX) else "strict")

    def open(self, recorded: dict[str, JsonValue] | None) -> Source:
        """The source; `recorded` is what the manifest of the folder says of its own."""
        if recorded and (recorded.get("source"), recorded.get("revision")) != (self.source, self.revision):
            recorded = None
        return open_source(
            self.source,
            fields=self.fields,
            revision=self.revision,
            subset=self.subset,
            source_split=self.source_split,
            recorded=recorded,
        )

    def manifest(self, source: Source, tokenizer: Tokenizer, rule: SplitRule) -> Manifest:
        """The manifest of a preparation that has just begun."""
        asked: dict[str, JsonValue] = {
            "source": self.source,
            "fields": list(self.fields) if self.fields else None,
            "revision": self.revision,
            "subset": self.subset,
            "source_split": self.source_split,
            "limit_documents": self.limit_documents,
            "errors": self.policy,
            "shard_tokens": self.shard_tokens,
        }
        return Manifest(
            complete=False,
            tokenizer=tokenizer.info,
            source={**asked, **source.identity, "counts": {"read": 0, "empty": 0, "skipped": 0}},
            split_rule=rule.record,
            shards=[],
        )


@dataclass(frozen=True)
class Outcome:
    """A complete folder, and what this run did for it."""

    manifest: Manifest
    progress: Progress | None
    """None if the folder was complete already."""


def prepare(request: Request, out: Path, *, workers: int, fresh: bool = False, show: bool | None = None) -> Outcome:
    """Makes `out` the data folder of a request, or goes on with it.

    Args:
        request: what to prepare.
        out: the folder; made if missing.
        workers: threads that encode.
        fresh: replace an earlier preparation in `out`, once the source has given its first text.
        show: a progress bar; by default on terminals.

    Raises:
        DataError: anything that the user can put right. Unless whole shards are there to go on from, nothing is left.
    """
    for flag, number in (("shard_tokens", request.shard_tokens), ("workers", workers)):
        if number < 1:
            raise DataError(f"--{flag} {number}: must be at least 1")
    if request.limit_documents is not None and request.limit_documents < 1:
        raise DataError(f"--limit_documents {request.limit_documents}: must be at least 1; leave it out to read all")
    rule = SplitRule(request.splits)
    tokenizer = load_tokenizer(request.tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.path.resolve().parent == out.resolve():
        raise DataError(f"--tokenizer {request.tokenizer}: lies in the folder that is written to; keep it elsewhere")
    with made_folder(out), locked(out):
        earlier = _earlier(out, fresh=fresh)
        source = request.open(earlier.manifest.source if earlier else None)
        manifest = request.manifest(source, tokenizer, rule)
        if fresh:
            _refuse_without_text(request, source)
        if earlier:
            _refuse_another(out, earlier.manifest, manifest)
            if earlier.manifest.complete:
                (out / JOURNAL_NAME).unlink(missing_ok=True)
                return Outcome(earlier.manifest, None)
        with Progress(show=show) as progress:
            run = _Run(request, out, source, tokenizer, rule, workers, progress)
            return Outcome(run.complete(_continued(earlier, manifest)), progress)


@dataclass
class _Run:
    request: Request
    out: Path
    source: Source
    tokenizer: Tokenizer
    rule: SplitRule
    workers: int
    progress: Progress

    def complete(self, journal: Journal) -> Manifest:
        """Works from the journal to the end of the source, without gigatoken if that proves wrong."""
        if not journal.fast:
            return self._work(journal, self.tokenizer)
        encoder, reason = fastest_encoder(self.tokenizer)
        if reason:
            self.progress.note(f"{reason}; encoding with tiktoken")
        try:
            return self._work(journal, encoder)
        except DisagreementError as error:
            self.progress.note(f"{error}; starting over with tiktoken")
            remove_everything(self.out)
            # Opened anew: of the former the next group may still be read.
            self.source = self.request.open(journal.manifest.source)
            start = self.request.manifest(self.source, self.tokenizer, self.rule)
            return self._work(Journal(manifest=start, fast=False), self.tokenizer)

    def _work(self, journal: Journal, encoder: BatchEncoder) -> Manifest:
        try:
            journal.write(self.out)
            if not journal.sets:
                # Readers then say that the preparation has not ended, rather than that there is none.
                journal.manifest.write(self.out)
            # With --fresh these are all of the former shards: a kill in their midst leaves a journal to go on from.
            remove_unknown(self.out, journal.manifest)
            if not journal.sets:
                _copy_tokenizer(self.tokenizer, self.out)
            with closing(self._groups(journal, encoder)) as groups:
                while following := self._next_set(groups, journal):
                    journal = following
            return self._finish(journal)
        except BaseException as error:
            if not journal.manifest.shards:
                remove_everything(self.out)
            elif isinstance(error, DataError):
                raise DataError(f"{error}; {journal.sets} sets of shards are whole, the same command goes on") from None
            raise

    def _groups(self, journal: Journal, encoder: BatchEncoder) -> Generator[EncodedBatch, None, None]:
        limit = self.request.limit_documents
        return encode_batches(
            batches(
                self.source,
                journal.position,
                batch_bytes=min(BATCH_BYTES, 4 * self.request.shard_tokens),
                limit=None if limit is None else limit - journal.counts["read"],
                errors=self.request.policy,
            ),
            encoder,
            self.rule,
            end_of_text=self.tokenizer.end_of_text,
            dtype=self.tokenizer.dtype,
            workers=self.workers,
        )

    def _next_set(self, groups: Iterator[EncodedBatch], journal: Journal) -> Journal | None:
        """Writes one set of shards and the journal behind it; None if no documents are left."""
        counts, position = Counter(journal.counts), journal.position
        with ShardSet(self.out, journal.sets, self.tokenizer.dtype) as shards:
            for group in groups:
                shards.add(group)
                batch, position = group.batch, group.batch.position
                counts.update(read=batch.read, empty=batch.empty, skipped=batch.skipped)
                self.progress.add(len(batch.texts), batch.text_bytes, group.tokens)
                for note in group.notes:
                    self.progress.note(note)
                if shards.tokens >= self.request.shard_tokens:
                    break
            if counts == journal.counts:
                return None
            journal = journal.after(shards.finish(), position, dict(counts))
        journal.write(self.out)
        return journal

    def _finish(self, journal: Journal) -> Manifest:
        if not journal.manifest.shards:
            raise _without_text(self.request, journal.counts)
        write_rates(self.out, self.progress.rates)
        manifest = journal.manifest.model_copy(update={"complete": True})
        manifest.write(self.out)
        (self.out / JOURNAL_NAME).unlink()
        return manifest


def _earlier(out: Path, *, fresh: bool) -> Journal | None:
    """Where an earlier preparation of this folder stands, complete or not; None to begin anew."""
    if not was_prepared(out):
        names = [file.name for file in out.iterdir()]
        strangers = sorted(name for name in names if is_ours(name.removesuffix(".tmp")) or name in SIDE_FILES)
        if strangers:
            raise DataError(
                f"{out}: holds {strangers[0]}, but no {JOURNAL_NAME} or {MANIFEST_NAME} of data_prep says what it "
                "belongs to; take another --out, or move it away"
            )
        return None
    if fresh:
        return None
    if (out / MANIFEST_NAME).exists():
        manifest = Manifest.read(out)
        if manifest.complete:
            return Journal(manifest=manifest)
    journal = Journal.read(out)
    if journal is None:
        raise DataError(
            f"{out}: holds an unfinished preparation, but no {JOURNAL_NAME} to go on from; take another --out, "
            "or --fresh to start over"
        )
    return journal


def _refuse_without_text(request: Request, source: Source) -> None:
    """Reads up to the first text: what is wrong with a connection or a column shows there, before anything is lost."""
    counts: Counter[str] = Counter()
    for batch in batches(source, None, batch_bytes=1, limit=request.limit_documents, errors=request.policy):
        if batch.texts:
            return
        counts.update(read=batch.read, empty=batch.empty, skipped=batch.skipped)
    raise _without_text(request, counts)


def _without_text(request: Request, counts: Mapping[str, int]) -> DataError:
    return DataError(
        f"{request.source}: no text in it: {counts['read']:,} documents read, {counts['empty']:,} empty, "
        f"{counts['skipped']:,} skipped; give a source with text"
    )


def _refuse_another(out: Path, then: Manifest, now: Manifest) -> None:
    if found := differences(then, now):
        state = "complete" if then.complete else "unfinished"
        raise DataError(
            f"{out}: holds a {state} preparation of another command or source ({'; '.join(found)}); "
            "repeat that command, take another --out, or --fresh to start over"
        )


def _continued(earlier: Journal | None, manifest: Manifest) -> Journal:
    if earlier is None:
        return Journal(manifest=manifest)
    source = {**manifest.source, "counts": earlier.manifest.source["counts"]}
    return earlier.model_copy(update={"manifest": earlier.manifest.model_copy(update={"source": source})})


def _copy_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    if isinstance(tokenizer, HuggingFaceTokenizer):
        for file in tokenizer.files:
            # The loader looks for these names, whatever the file was called.
            name = TOKENIZER_FILE if file == tokenizer.path else CONFIG_FILE
            write_atomically(out / name, file.read_bytes())
