from pathlib import Path

import pytest

from dsllm.errors import UserError
from dsllm.training.deepspeed_env import deepspeed_env_files, read_deepspeed_env


def write(folder: Path, text: str) -> Path:
    path = folder / ".deepspeed_env"
    path.write_bytes(text.encode())
    return path


def test_variables_are_read_as_the_launcher_sets_them(tmp_path: Path) -> None:
    path = write(tmp_path, "OMP_NUM_THREADS=1\nNCCL_SOCKET_IFNAME= =eth0 \r\nFLAGS=-a -b=c\nPATH=/opt/bin:$PATH\nNONE=")
    assert read_deepspeed_env(path) == {
        "OMP_NUM_THREADS": "1",
        "NCCL_SOCKET_IFNAME": "=eth0",
        "FLAGS": "-a -b=c",
        "PATH": "/opt/bin:$PATH",
        "NONE": "",
    }


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert read_deepspeed_env(write(tmp_path, "")) == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2 is blank, take it out"),
        ("# threads", "line 2 is the comment '# threads', take it out"),
        (
            "# THREADS=1",
            "line 2 is the comment",
        ),  # the launcher takes it, and the shell ignores the rest of its command
        ("THREADS", "line 2 is 'THREADS', write it as NAME=VALUE"),
        ("export THREADS=1", "line 2 names the variable 'export THREADS', take letters"),
        ('FLAGS="-a -b"', "line 2 gives FLAGS a quote in "),
        ("FLAGS='-a'", "line 2 gives FLAGS a quote in "),
        ("THREADS=1  # one", "line 2 gives THREADS a comment as part of its value '1  # one'"),
        ("THREADS=\x00", "line 2 gives THREADS a control character"),
        ("A=2", "line 2 sets A again"),
    ],
)
def test_a_line_that_the_launcher_would_stumble_over_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, f"A=1\n{line}\nB=2\n")
    with pytest.raises(UserError) as caught:
        read_deepspeed_env(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1 is the comment .*; line 3 is blank, .*; line 4 is 'B'"):
        read_deepspeed_env(write(tmp_path, "# ours\nA=1\n\nB\n"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_missing_or_binary_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / ".deepspeed_env"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="write lines such as"):
        read_deepspeed_env(path)


def test_home_and_working_directory_are_looked_at_and_the_latter_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    for folder in (home, project):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(project)
    assert deepspeed_env_files({}) == []
    files = [write(home, "A=1\n"), write(project, "A=2\n")]
    assert deepspeed_env_files({}) == files
    (home / "ours").touch()
    assert deepspeed_env_files({"DS_ENV_FILE": "ours"}) == [home / "ours"]
