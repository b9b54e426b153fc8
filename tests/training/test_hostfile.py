import os
import subprocess
from pathlib import Path

import pytest

from dsllm.errors import UserError
from dsllm.training.hostfile import read_hostfile
from tests.launching import DEEPSPEED

SCRIPT = """
from dsllm.errors import user_errors_exit
from dsllm.training.hostfile import check_launcher
with user_errors_exit():
    check_launcher()
print("training would start")
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def test_hosts_keep_their_order_and_comments_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, "# ours\n\nnode2 slots=8\n  node1\tslots=4  # half of it\nnode3 slots=2 max_slots=2\n")
    assert list(read_hostfile(path).items()) == [("node2", 8), ("node1", 4), ("node3", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node1\n", "line 1 is 'node1', write it as `HOST slots=8`"),
        ("node1 slots=8x\n", "line 1 is 'node1 slots=8x'"),
        ("node1 slots = 8\n", "line 1 is 'node1 slots = 8'"),
        ("node1 slots=0\n", "line 1 gives node1 slots=0"),
        ("node1 slots=1\nnode1 slots=2\n", "line 2 names node1 again"),
        ("# nothing else\n", "names no host"),
    ],
)
def test_a_malformed_hostfile_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_hostfile(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1 .* line 3 "):
        read_hostfile(write(tmp_path, "node1\nnode2 slots=1\nnode2 slots=1\n"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_missing_or_binary_hostfile_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "hosts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="one line for each host"):
        read_hostfile(path)


def launch(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [*map(str, DEEPSPEED), *options, "--num_gpus", "1", script, "--hostfile", "of-the-script"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("option", [["--hostfile", "hosts"], ["-Hhosts"]])
def test_a_hostfile_that_the_launcher_did_not_find_ends_training_with_code_2(tmp_path: Path, option: list[str]) -> None:
    done = launch(tmp_path, *option)
    assert done.returncode == 2
    assert f"error: hostfile {tmp_path / 'hosts'}: No such file or directory; write one line for each" in done.stderr
    assert "Traceback" not in done.stderr and "training would start" not in done.stdout


def test_without_a_hostfile_training_starts_on_this_machine(tmp_path: Path) -> None:
    done = launch(tmp_path)
    assert done.returncode == 0
    assert "training would start" in done.stdout
