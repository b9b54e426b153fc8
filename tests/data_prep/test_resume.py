"""The command itself, killed: the same command again ends with the bytes of an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.journal import JOURNAL_NAME, Journal
from data_prep.prepare import Request, prepare
from dsllm.data.verify import verify_folder
from tests.data_prep.corpora import contents, json_lines, texts

KILLS = 10
SHARD_TOKENS = 5_000


def start(source: str, out: Path) -> subprocess.Popen:
    command = ["tokenize", "--source", source, "--out", str(out), "--shard_tokens", str(SHARD_TOKENS)]
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def wait_for_sets(process: subprocess.Popen, out: Path, sets: int) -> None:
    """Until the journal counts so many sets, or the process has ended."""
    while process.poll() is None:
        journal = Journal.read(out) if out.exists() else None
        if journal is not None and journal.sets >= sets:
            return
        time.sleep(0.002)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return str(json_lines(tmp_path / "a.jsonl", texts(8_000)))


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_byte(corpus, tmp_path: Path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    sets = len({shard.name[-5:] for shard in prepare(
        Request(corpus, shard_tokens=SHARD_TOKENS), whole, workers=2).manifest.shards})  # fmt: skip
    rng = random.Random(time.time_ns())
    goals = sorted(rng.randrange(0, sets // 2) for _ in range(KILLS))
    left = []
    for goal in goals:
        process = start(corpus, out)
        wait_for_sets(process, out, goal)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it ended before kill at set {goal} of {sets}"
        left.append(sorted(file.name for file in out.iterdir()) if out.exists() else [])
    process = start(corpus, out)
    said, complaint = process.communicate()
    assert process.returncode == 0, complaint
    assert contents(out) == contents(whole), f"killed at {goals}"
    assert verify_folder(out).sound
    documents = int(said.split()[0].replace(",", ""))
    assert documents < 8_000, "the last run must not have started over"
    assert any(name.endswith(".tmp") for names in left for name in names), "no kill met a file that was being written"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_its_code_and_says_how_to_go_on(corpus, tmp_path: Path, number):
    out = tmp_path / "out"
    process = start(corpus, out)
    wait_for_sets(process, out, 3)
    process.send_signal(number)
    said, complaint = process.communicate()
    assert process.returncode == 128 + number
    assert complaint.strip() == "stopped; the same command goes on"
    assert said == "" and not list(out.glob("*.tmp"))
    journal = Journal.read(out)
    assert journal is not None and journal.sets >= 3


def test_what_a_kill_left_half_done_is_removed(tmp_path: Path):
    """The moments between two renames, which no random kill is sure to meet, made by hand."""
    source, out = str(json_lines(tmp_path / "a.jsonl", texts(300))), tmp_path / "out"
    request = Request(source, shard_tokens=2_000)
    prepare(request, tmp_path / "whole", workers=1)
    done = prepare(request, out, workers=1).manifest
    whole = contents(out)

    # Behind the last step but one: the manifest is complete, the journal still there.
    (out / JOURNAL_NAME).write_text("{}")
    assert prepare(request, out, workers=1).progress is None
    assert contents(out) == whole

    # Shards of set 1 have their names, half of those of set 2 as well, and the journal counts set 0.
    first = [shard for shard in done.shards if shard.name.endswith("_00000")]
    lines = Path(source).read_text().splitlines()
    read = sum(shard.documents for shard in first)
    source_record = {**done.source, "counts": {"read": read, "empty": 0, "skipped": 0}}
    manifest = done.model_copy(update={"complete": False, "shards": first, "source": source_record})
    Journal(manifest=manifest, position={"file": 0, "record": read}, sets=1).write(out)
    manifest.write(out)
    (out / "train_00002.idx").unlink()
    (out / "val_00002.bin").rename(out / "val_00002.bin.tmp")
    (out / "journal.json.tmp").write_bytes(b"half")
    outcome = prepare(request, out, workers=1)
    assert outcome.progress is not None and outcome.progress.documents == len(lines) - read
    assert contents(out) == whole == contents(tmp_path / "whole")


def test_the_journal_is_one_line_of_json_with_the_position(tmp_path: Path):
    source, out = json_lines(tmp_path / "a.jsonl", texts(300)), tmp_path / "out"
    source.write_bytes(source.read_bytes() + b"broken")
    process = start(str(source), out)
    process.communicate()
    record = json.loads((out / JOURNAL_NAME).read_text())
    assert record["position"]["file"] == 0 and 0 < record["position"]["record"] <= 300
