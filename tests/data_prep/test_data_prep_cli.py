"""The commands as a person types them: exit codes, one message, no traceback, and nothing left behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.cli import main
from tests.data_prep.corpora import documents, json_lines, texts


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(json_lines(tmp_path / "a.jsonl", texts(100)))


@pytest.fixture
def run(capsys):
    """Runs a command line in this process: exit code, standard output, standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(argument) for argument in argv])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_commands_follow_on_each_other(source, tmp_path: Path, run):
    out = tmp_path / "out"
    code, said, complaint = run("tokenize", "--source", source, "--out", out, "--tokenizer", "bytes", "--workers", 2)
    assert (code, complaint) == (0, "")
    assert said.startswith("100 documents, ") and "MB/s" in said and "tokenizer   bytes" in said
    assert run("tokenize", "--source", source, "--out", out, "--tokenizer", "bytes")[1].startswith(
        f"{out}: already complete"
    )
    assert run("verify", out) == (0, f"{out}: 3 shards, all sound\n", "")
    code, said, _ = run("inspect", out, "--split", "val", "--documents", 1)
    assert code == 0 and "--- val_00000, document 0: " in said
    for form, files in (
        ("nanogpt", "test.bin train.bin val.bin"),
        ("llmc", "test_00000.bin train_00000.bin val_00000.bin"),
    ):
        code, said, _ = run("convert", out, "--to", form, "--out", tmp_path / form)
        assert code == 0 and sorted(file.name for file in (tmp_path / form).iterdir()) == files.split()
        back = tmp_path / f"from_{form}"
        code, said, _ = run("convert", tmp_path / form, "--to", "megatron", "--out", back, "--tokenizer", "bytes")
        assert code == 0 and run("verify", back)[0] == 0
        for split in ("train", "val", "test"):
            assert documents(back, split) == documents(out, split)


def test_a_damaged_shard_is_found_by_verify(source, tmp_path: Path, run):
    out = tmp_path / "out"
    run("tokenize", "--source", source, "--out", out)
    with (out / "train_00000.bin").open("r+b") as file:
        file.write(b"\x07")
    code, said, complaint = run("verify", out)
    assert (code, said) == (2, "") and "train_00000.bin: SHA-256" in complaint and "Traceback" not in complaint


def test_help_shows_every_flag_of_a_command(run):
    code, said, _ = run("tokenize", "--help")
    assert code == 0 and "--limit_documents" in said and "FIRE" not in said
    assert run()[0] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("tokenise --source SRC --out OUT", "tokenise: no such command; take tokenize"),
        ("tokenize --source SRC", "tokenize: --out is missing"),
        ("tokenize --source SRC --out", "--out: needs a value"),
        (
            "tokenize --source SRC --source OUT --out OUT",
            "--source: given 2 times; give it once, with a folder or a glob",
        ),
        ("tokenize --source SRC --out OUT --feilds text", "--feilds: no such flag of tokenize; take --fields"),
        ("tokenize --source SRC --out OUT --fields txt", "a.jsonl:1: no column 'txt', there are: n, text"),
        ("tokenize --source SRC --out OUT --tokenizer gtp2", "tokenizer 'gtp2': no such tokenizer; did you mean gpt2?"),
        ("tokenize --source SRC --out OUT --tokenizer nope.json", "nope.json: No such file or directory"),
        ("tokenize --source SRC --out OUT --splits 0.8,0.1", "--splits 0.8,0.1: 2 shares, not 3"),
        ("tokenize --source SRC --out OUT --splits a,b,c", "--splits a,b,c: not numbers"),
        ("tokenize --source SRC --out OUT --workers two", "--workers two: not a whole number"),
        ("tokenize --source SRC --out OUT --workers 0", "--workers 0: must be at least 1"),
        ("tokenize --source SRC --out OUT --shard_tokens 0", "--shard_tokens 0: must be at least 1"),
        ("tokenize --source SRC --out OUT --limit_documents 0", "--limit_documents 0: must be at least 1"),
        (
            "tokenize --source SRC --out OUT --errors ignore",
            "--errors ignore: no such policy; take strict, replace, skip",
        ),
        ("tokenize --source nowhere --out OUT", "source 'nowhere': no such file, folder or data set"),
        ("tokenize --source installed:nonesuch --out OUT", "installed:nonesuch: no such package here"),
        ("verify OUT", "OUT: no such folder"),
        ("inspect OUT", "OUT: no such folder"),
        ("verify OUT extra", "extra: one argument too many for verify"),
        ("convert SRC --to tfrecord --out OUT", "--to tfrecord: no such format; take megatron, nanogpt, llmc"),
        ("convert SRC --to nanogpt --out OUT", "no data folder; make one first with --to megatron"),
        ("convert nowhere --to megatron --out OUT", "nowhere: no such file or folder"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2_and_leaves_nothing(source, tmp_path: Path, run, argv, message):
    out = tmp_path / "out"
    code, said, complaint = run(*argv.replace("SRC", source).replace("OUT", str(out)).split())
    assert (code, said) == (2, "")
    assert message.replace("OUT", str(out)) in complaint
    assert complaint.startswith("error: ") and complaint.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--feilds=text", "--whatever"])
def test_a_flag_that_does_not_exist_stops_the_command_before_it_begins(source, tmp_path: Path, run, flag):
    assert run("tokenize", "--source", source, "--out", tmp_path / "out", flag)[0] == 2
    assert not (tmp_path / "out").exists()


def test_names_that_look_like_numbers_are_names(tmp_path: Path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1e3").write_text("some text")
    assert run("tokenize", "--source", "1e3", "--out", "12", "--splits", "1,0,0")[0] == 0
    assert (tmp_path / "12" / "manifest.json").exists()


def test_the_hub_that_cannot_be_reached_is_one_message_without_a_traceback(tmp_path: Path):
    program = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise socket.gaierror('Name or service not known')\n"
        "socket.getaddrinfo = refuse\n"
        "from data_prep.cli import main\n"
        f"main(['tokenize', '--source', 'open-web-math', '--out', {str(tmp_path / 'out')!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120
    )
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: open-web-math/open-web-math: ") and done.stderr.count("\n") == 1
    assert "the Hugging Face hub cannot be reached" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_takes_for_an_error_of_its_own_is_no_traceback(source, tmp_path: Path, number):
    program = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it is ignored in the background of a script
        "from data_prep import cli\n"
        "def takes_it_for_its_own(*args):\n"
        "    try:\n"
        f"        signal.raise_signal({int(number)})\n"
        "    except BaseException:\n"
        "        raise ValueError('not a valid value')\n"
        "cli.COMMANDS['verify'] = lambda: cli.Action(takes_it_for_its_own)\n"
        "cli.main(['verify'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120
    )
    assert (done.returncode, done.stderr) == (128 + number, "stopped; the same command goes on\n")


def test_away_from_a_terminal_there_is_no_bar(source, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", "tokenize", "--source", source, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0 and done.stderr == ""
