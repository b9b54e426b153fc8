"""launch/embed.py as a user starts it: a file of vectors, a cosine, the nearest lines, or one message."""

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from dsllm.training.loading import load_model
from tests.launching import REPOSITORY

LINES = ["def add(a, b):", "    return a + b", "A prime has two divisors.", "x" * 100]


@pytest.fixture
def embed(trained_run, tmp_path, monkeypatch, capsys):
    """Runs the script in an empty folder with words after the run; gives its exit code and what it told."""
    monkeypatch.chdir(tmp_path)

    def start(*words: str, run: Path = trained_run) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embed.py", str(run), *words])
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / "launch" / "embed.py"), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return start


@pytest.fixture
def lines(tmp_path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def test_texts_and_the_lines_of_a_file_give_the_same_vectors(embed, lines, trained_run):
    code, out, _ = embed("--file", "lines.txt", "--out", "a.npy")
    assert (code, out) == (0, "a.npy: 4 × 32 float32, level 0\n")
    words = [word for line in LINES for word in ("--text", line)]
    assert embed(*words, "--out", "b")[0] == 0
    a, b = np.load("a.npy"), np.load("b")
    assert a.dtype == np.float32 and a.shape == (4, load_model(trained_run).config.n_embd)
    assert np.array_equal(a, b)
    assert sorted(path.name for path in Path().iterdir()) == ["a.npy", "b", "lines.txt"]
    assert embed("--file", "lines.txt", "--out", "a.npy", "--pool", "last", "--level", "0")[0] == 0
    assert np.abs(np.load("a.npy") - b).max() > 1e-3


def test_a_text_longer_than_the_context_is_embedded_in_chunks_and_the_command_says_so(embed, lines):
    long = "1 of 4 texts are longer than the 31 tokens that level 0 takes at once, up to 100: embedded in chunks"
    assert long in embed("--file", "lines.txt", "--out", "a.npy")[2]
    assert embed("--text", LINES[0], "--out", "a.npy")[2] == ""


def test_compare_prints_the_cosine_of_two_texts(embed, lines):
    assert embed("--compare", LINES[0], LINES[0])[:2] == (0, "1.0000\n")
    embed("--text", LINES[0], "--text", LINES[2], "--out", "a.npy")
    a, b = np.load("a.npy")
    code, out, _ = embed("--compare", LINES[0], LINES[2])
    assert code == 0 and float(out) == pytest.approx(a @ b, abs=1e-4)


def test_the_nearest_lines_come_first_with_their_numbers_and_cosines(embed, lines):
    code, out, _ = embed("--nearest", LINES[2], "--file", "lines.txt", "--k", "3")
    told = out.splitlines()
    assert code == 0 and len(told) == 3
    assert told[0] == f"1.0000  3: {LINES[2]}"
    scores = [float(line.split()[0]) for line in told]
    assert scores == sorted(scores, reverse=True)
    assert len(embed("--nearest", "add", "--file", "lines.txt")[1].splitlines()) == 4


def test_windows_line_ends_a_mark_of_utf_8_and_a_missing_last_newline_change_nothing(embed, lines):
    embed("--file", "lines.txt", "--out", "a.npy")
    Path("other.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode())
    assert embed("--file", "other.txt", "--out", "b.npy")[0] == 0
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))


OUT = ["--out", "x.npy"]
WRONG = [
    (["--text", "a"], "nothing to do; give --out FILE, --compare TEXT TEXT or --nearest TEXT"),
    ([*OUT, "--compare", "a", "b"], "--out and --compare: one at a time"),
    (OUT, "--out: no texts; give --text or --file"),
    ([*OUT, "--text", "a", "--file", "lines.txt"], "--text and --file: give the texts in one of the two ways"),
    (["--compare", "a", "b", "--text", "c"], "--text: not used by --compare; leave it out"),
    (["--nearest", "a", "--text", "c"], "--text: not used by --nearest; leave it out and give --file"),
    (["--nearest", "a"], "--nearest: no texts; give --file"),
    ([*OUT, "--text", "a", "--k", "3"], "--k = 3: only --nearest prints so many lines"),
    (["--nearest", "a", "--file", "lines.txt", "--k", "0"], "argument --k: 0: take a whole number from 1"),
    ([*OUT, "--text", "a", "--pool", "max"], "argument --pool: invalid choice: 'max'"),
    ([*OUT, "--text", "a", "--level", "1"], "level = 1: this model has level 0 alone"),
    ([*OUT, "--text", ""], "text 1 of 1: empty"),
    (["--compare", "a", " "], "text 2 of 2: empty"),
    (["--nearest", "", "--file", "lines.txt"], "--nearest: empty; give some words to look for"),
    ([*OUT, "--file", "none.txt"], "none.txt: No such file or directory"),
    ([*OUT, "--file", "empty.txt"], "empty.txt: holds no text; write one a line"),
    ([*OUT, "--file", "gap.txt"], "gap.txt, line 2: empty; a line is a text, so take it out"),
    ([*OUT, "--file", "latin.txt"], "latin.txt, line 3: not UTF-8"),
    (["--out", "nowhere/x.npy", "--text", "a"], "nowhere/x.npy: No such file or directory"),
    (["--out", ".", "--text", "a"], ".: a folder; name a file, as in x.npy"),
    (["--out", "pipe", "--text", "a"], "pipe: a device or a pipe, which would be replaced; name a file"),
]


@pytest.mark.parametrize("words, message", WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_a_user_gets_wrong_is_one_message_and_exit_code_2(words, message, embed, lines):
    os.mkfifo("pipe")
    Path("empty.txt").touch()
    Path("gap.txt").write_text("a\n  \nb\n")
    Path("latin.txt").write_bytes(b"a\nb\ncaf\xe9\n")
    before = sorted(Path().iterdir())
    code, out, err = embed(*words)
    assert (code, out) == (2, "")
    assert message in err and err.count("error:") == 1 and "Traceback" not in err
    assert sorted(Path().iterdir()) == before


def test_a_run_that_is_not_there_is_named(embed):
    code, _, err = embed("--text", "a", *OUT, run=Path("nowhere"))
    assert code == 2 and "nowhere: no such run or checkpoint" in err
    assert not list(Path().iterdir())
