"""A preparation as a whole: what the folder holds, what changes it and what does not, and what is left after errors."""

import os
import shutil
import subprocess
import threading
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pytest

from data_prep.fast import DisagreementError
from data_prep.journal import JOURNAL_NAME, Journal, locked
from data_prep.prepare import Request, prepare
from data_prep.sources.hub import DatasetSource
from dsllm.data.manifest import Manifest
from dsllm.data.verify import verify_folder
from dsllm.errors import DataError
from dsllm.tokenizer import load_tokenizer, tokenizer_of
from tests.data_prep.corpora import contents, documents, json_lines, texts

SETS = 4_000
"""Tokens of a set of shards, so that a small corpus makes many."""


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(json_lines(tmp_path / "a.jsonl", [*texts(300), "", " "]))


def test_the_folder_holds_every_document_once_in_order_and_by_split(source, tmp_path: Path):
    out = tmp_path / "made" / "out"
    manifest = prepare(Request(source, shard_tokens=SETS), out, workers=2).manifest
    assert verify_folder(out).sound and manifest == Manifest.read(out) and manifest.complete
    assert manifest.source["counts"] == {"read": 302, "empty": 2, "skipped": 0}
    gpt2 = tokenizer_of(out)
    found = {split: [gpt2.decode(tokens[:-1]) for tokens in documents(out, split)] for split in manifest.splits}
    order = {text: i for i, text in enumerate(texts(300))}
    for split in found:
        assert found[split] == sorted(found[split], key=order.__getitem__)
    assert Counter(chain(*found.values())) == Counter(texts(300))
    assert sum(shard.text_bytes for shard in manifest.shards) == sum(len(text.encode()) for text in texts(300))
    assert len({shard.name for shard in manifest.shards if shard.split == "train"}) > 5


def test_the_bytes_do_not_depend_on_the_number_of_workers(source, tmp_path: Path):
    for workers in (1, 2, 5):
        prepare(Request(source, shard_tokens=SETS), tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")


def test_splits_do_not_depend_on_order_or_size_of_shards(source, tmp_path: Path):
    prepare(Request(source, shard_tokens=SETS), tmp_path / "a", workers=1)
    json_lines(tmp_path / "b.jsonl", [*reversed(texts(300)), *texts(50, seed=9)])
    prepare(Request(str(tmp_path / "b.jsonl")), tmp_path / "b", workers=1)
    for split in ("train", "val", "test"):
        few = {tuple(tokens) for tokens in documents(tmp_path / "a", split)}
        assert few and few <= {tuple(tokens) for tokens in documents(tmp_path / "b", split)}


def test_a_complete_folder_is_left_as_it_is(source, tmp_path: Path):
    prepare(Request(source), tmp_path / "out", workers=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(Request(source), tmp_path / "out", workers=2).progress is None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "bytes"}, r"tokenizer: gpt2 \(.*\) then, bytes \(.*\) now"),
        ({"shard_tokens": 9000}, "shard_tokens: 100000000 then, 9000 now"),
        ({"splits": (0.9, 0.05, 0.05)}, "train: 0.8 then, 0.9 now"),
        ({"limit_documents": 5}, "limit_documents: None then, 5 now"),
        ({"errors": "skip"}, "errors: strict then, skip now"),
    ],
)
def test_another_command_on_a_folder_is_refused_with_the_difference_named(source, tmp_path: Path, change, message):
    out = tmp_path / "out"
    prepare(Request(source), out, workers=1)
    before = contents(out)
    with pytest.raises(DataError, match=message):
        prepare(Request(source, **change), out, workers=1)
    assert contents(out) == before
    prepare(Request(source, **change), out, workers=1, fresh=True)
    prepare(Request(source, **change), tmp_path / "new", workers=1)
    assert contents(out) == contents(tmp_path / "new")


def test_a_source_that_has_changed_is_refused(source, tmp_path: Path):
    prepare(Request(source), tmp_path / "out", workers=1)
    with open(source, "a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(DataError, match=r"bytes: .* then, .* now"):
        prepare(Request(source), tmp_path / "out", workers=1)


def test_fresh_removes_nothing_that_a_preparation_did_not_write(source, tmp_path: Path):
    prepare(Request(source, shard_tokens=SETS), tmp_path / "out", workers=1)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    prepare(Request(source), tmp_path / "out", workers=1, fresh=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and verify_folder(tmp_path / "out").sound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "missing/folder/a.jsonl"}, "no such file, folder or data set"),
        ({"fields": ("txt",)}, "no column 'txt'"),
        ({"tokenizer": "gpt-2"}, "gpt-2"),
        ({"splits": (0.5, 0.6)}, "splits"),
        ({"source": "textless"}, "no text in it: 2 documents read, 2 empty"),
        ({"source": "broken"}, r"broken\.jsonl:1: not JSON"),
    ],
)
def test_fresh_keeps_the_earlier_folder_if_the_new_preparation_cannot_begin(source, tmp_path: Path, change, message):
    prepare(Request(source, shard_tokens=SETS), tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    json_lines(tmp_path / "textless.jsonl", ["", " "])
    (tmp_path / "broken.jsonl").write_text("broken")
    made_here = {name: str(tmp_path / f"{name}.jsonl") for name in ("textless", "broken")}
    asked = {"source": source, **change}
    asked["source"] = made_here.get(asked["source"], asked["source"])
    with pytest.raises(DataError, match=message):
        prepare(Request(**asked), tmp_path / "out", workers=1, fresh=True)
    assert contents(tmp_path / "out") == before


def test_fresh_killed_among_the_former_shards_goes_on_without_them(source, tmp_path: Path):
    out, request = tmp_path / "out", Request(source)
    prepare(Request(source, tokenizer="bytes", shard_tokens=SETS), out, workers=1)
    former = out / "train_00003.bin"
    former.unlink()
    former.mkdir()  # cannot be unlinked, so the run ends among the former shards as by a kill
    (former / "file").touch()
    with pytest.raises(DataError, match=r"train_00003\.bin"):
        prepare(request, out, workers=1, fresh=True)
    shutil.rmtree(former)
    prepare(request, out, workers=1)
    prepare(request, tmp_path / "new", workers=1)
    assert contents(out) == contents(tmp_path / "new")


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["train_00000.bin", "tokenizer.json", "manifest.json", "journal.json"])
def test_files_of_others_under_our_names_are_neither_written_over_nor_removed(source, tmp_path: Path, name, fresh):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"manifest": "precious"}')
    with pytest.raises(DataError, match=rf"holds {name}, but no journal.*; take another --out, or move it away"):
        prepare(Request(source), tmp_path / "out", workers=1, fresh=fresh)
    assert contents(tmp_path / "out") == {name: b'{"manifest": "precious"}'}


def test_fresh_replaces_an_unfinished_preparation_whose_journal_cannot_be_used(source, tmp_path: Path):
    out = tmp_path / "out"
    manifest = prepare(Request(source, shard_tokens=SETS), out, workers=1).manifest
    manifest.model_copy(update={"complete": False}).write(out)
    with pytest.raises(DataError, match=r"no journal\.json to go on from; .*--fresh"):
        prepare(Request(source), out, workers=1)
    (out / JOURNAL_NAME).write_text("{}")
    with pytest.raises(DataError, match="not a journal of this version of data_prep; start over with --fresh"):
        prepare(Request(source), out, workers=1)
    prepare(Request(source), out, workers=1, fresh=True)
    prepare(Request(source), tmp_path / "new", workers=1)
    assert contents(out) == contents(tmp_path / "new")


def test_two_preparations_of_one_folder_do_not_mix(source, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(DataError, match="another preparation is writing there"):
        prepare(Request(source), tmp_path / "out", workers=1)
    prepare(Request(source), tmp_path / "out", workers=1)


def test_a_folder_of_a_tokenizer_json_carries_it(source, tmp_path: Path):
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(texts(20), trainer)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    backend.save(str(elsewhere / "mine.json"))
    (elsewhere / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    out = tmp_path / "out"
    prepare(Request(source, tokenizer=str(elsewhere / "mine.json")), out, workers=2)
    shutil.rmtree(elsewhere)
    out = out.rename(tmp_path / "moved")
    assert tokenizer_of(out).info == Manifest.read(out).tokenizer and verify_folder(out).sound
    with pytest.raises(DataError, match="lies in the folder that is written to"):
        prepare(Request(source, tokenizer=str(out / "tokenizer.json")), out, workers=1, fresh=True)


def broken(tmp_path: Path, good: int) -> str:
    path = json_lines(tmp_path / "broken.jsonl", texts(good))
    path.write_bytes(path.read_bytes() + b"{broken\n" + b'{"text": "last"}\n')
    return str(path)


def test_an_error_in_the_first_set_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(DataError, match=r"broken\.jsonl:6: not JSON"):
        prepare(Request(broken(tmp_path, 5)), tmp_path / "made" / "out", workers=2)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("request_", [{"splits": (0.5, 0.5)}, {"tokenizer": "gpt-2"}, {"shard_tokens": 0}])
def test_impossible_options_leave_nothing_behind(source, tmp_path: Path, request_):
    with pytest.raises(DataError):
        prepare(Request(source, **request_), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n{"text": "  "}\n'])
def test_a_source_without_text_is_an_error_and_leaves_nothing_behind(tmp_path: Path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match="no text in it"):
        prepare(Request(str(tmp_path / "a.jsonl")), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_late_error_keeps_whole_shards_and_a_milder_policy_goes_on_from_them(tmp_path: Path):
    path, out = broken(tmp_path, 300), tmp_path / "out"
    with pytest.raises(DataError, match=r"not JSON .* sets of shards are whole, the same command goes on"):
        prepare(Request(path, shard_tokens=SETS), out, workers=2)
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*.bin")}
    assert kept and not list(out.glob("*.tmp"))
    with pytest.raises(DataError, match="its preparation did not end"):
        Manifest.read(out).shards_of("train", out)
    prepare(Request(path, shard_tokens=SETS, errors="skip"), out, workers=2)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    prepare(Request(path, shard_tokens=SETS, errors="skip"), tmp_path / "whole", workers=2)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_limit_counts_over_interruptions(tmp_path: Path):
    path, out = broken(tmp_path, 300), tmp_path / "out"
    request = Request(path, shard_tokens=SETS, limit_documents=302)
    with pytest.raises(DataError):
        prepare(request, out, workers=1)
    manifest = prepare(Request(path, shard_tokens=SETS, limit_documents=302, errors="skip"), out, workers=1).manifest
    assert manifest.source["counts"] == {"read": 302, "empty": 0, "skipped": 1}
    few = prepare(Request(path, shard_tokens=SETS, limit_documents=10), tmp_path / "few", workers=1).manifest
    assert few.source["counts"]["read"] == sum(shard.documents for shard in few.shards) == 10


@dataclass(frozen=True)
class Streamed(Request):
    """A request for a data set that `datasets` streams, here from a file; stops once, as a lost connection would."""

    stop_at: list[int] = field(default_factory=list)

    def open(self, recorded: Any) -> DatasetSource:
        def load() -> datasets.IterableDataset:
            stream = datasets.load_dataset("json", data_files=self.source, split="train", streaming=True)
            stop = self.stop_at.pop() if self.stop_at else None

            def watch(row: dict, index: int) -> dict:
                if index == stop:
                    raise ConnectionError("the line is dead")
                return row

            return stream.map(watch, with_indices=True)

        return DatasetSource("streamed", ("text",), load, {"commit": "c0ffee"})


def test_a_stream_that_broke_off_goes_on_to_the_same_bytes(source, tmp_path: Path):
    with pytest.raises(DataError, match=r"streamed: reading stopped at row 201 .*the line is dead.*sets of shards"):
        prepare(Streamed(source, shard_tokens=SETS, stop_at=[200]), tmp_path / "out", workers=2)
    journal = Journal.read(tmp_path / "out")
    assert journal is not None and journal.sets > 2 and 100 < journal.position["row"] <= 200
    prepare(Streamed(source, shard_tokens=SETS), tmp_path / "out", workers=2)
    prepare(Streamed(source, shard_tokens=SETS), tmp_path / "whole", workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    prepare(Request(source, shard_tokens=SETS), tmp_path / "file", workers=1)
    assert documents(tmp_path / "file", "train") == documents(tmp_path / "out", "train")


class FailsLater:
    """tiktoken's tokens, until a document says otherwise."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer("gpt2")

    def encode_batch(self, group):
        if any(text.startswith("250 ") for text in group):
            raise DisagreementError("gigatoken gives other tokens than tiktoken")
        return self.tokenizer.encode_batch([text.upper() for text in group])


def test_a_disagreement_found_late_throws_away_what_was_written_before_it(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_prep.prepare.fastest_encoder", lambda tokenizer: (FailsLater(), None))
    prepare(Request(source, shard_tokens=SETS), tmp_path / "out", workers=2)
    assert "note: gigatoken gives other tokens than tiktoken; starting over with tiktoken" in capsys.readouterr().err
    monkeypatch.undo()
    prepare(Request(source, shard_tokens=SETS), tmp_path / "whole", workers=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("shard_tokens", [100_000_000, 5_000])
def test_a_full_disk_is_named_and_no_half_written_file_stays(small_disk: Path, tmp_path: Path, shard_tokens):
    source = str(json_lines(tmp_path / "a.jsonl", texts(2_000)))
    out = small_disk / "out"
    with pytest.raises(DataError, match="No space left on device; free space there or write to another folder"):
        prepare(Request(source, shard_tokens=shard_tokens), out, workers=2)
    if shard_tokens > 1_000_000:
        assert not out.exists()
        return
    assert not list(out.glob("*.tmp"))
    journal = Journal.read(out)
    assert journal is not None and journal.sets > 0
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    prepare(Request(source, shard_tokens=shard_tokens), out, workers=2)
    prepare(Request(source, shard_tokens=shard_tokens), tmp_path / "whole", workers=2)
    assert contents(out) == contents(tmp_path / "whole") and not (out / JOURNAL_NAME).exists()


def test_memory_holds_a_few_groups_whatever_the_size_of_the_source(tmp_path: Path):
    from data_prep.batches import Batch
    from data_prep.encoding import encode_batches
    from data_prep.splits import SplitRule

    tokenizer, read, lock = load_tokenizer("bytes"), 0, threading.Lock()

    def endless():
        nonlocal read
        while True:
            with lock:
                read += 1
            yield Batch(texts=["text"], places=["here"])

    groups = encode_batches(
        endless(), tokenizer, SplitRule((1, 0, 0)), end_of_text=256, dtype=tokenizer.dtype, workers=3
    )
    for taken in range(1, 200):
        next(groups)
        assert read - taken <= 6
    groups.close()
