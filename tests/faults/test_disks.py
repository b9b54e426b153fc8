"""A disk that is full, or a folder that is read-only: a message, exit code 2, and the checkpoint before stays whole."""

import os
import subprocess

import pytest

from dsllm.training.checkpoints import complete_checkpoints
from dsllm.training.monitor import read_metrics
from dsllm.training.verify import verify
from tests.launching import environment, launcher, start, train
from tests.multihost.hosts import REPOSITORY

pytestmark = pytest.mark.slow

MOUNTING = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(MOUNTING, capture_output=True).returncode != 0,
    reason="mounting a disk of its own needs root and namespaces",
)


def in_a_shell(script):
    """Run a script with mounts of its own; exit code and words."""
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def disk(tmp_path):
    """Where the disk is mounted; what was on it is kept beside it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk.kept").mkdir()
    return tmp_path / "disk"


FILLED = """
import os, sys
from dsllm import BaseTrainer
from dsllm.training.command import run

class Filling(BaseTrainer):
    def after_step(self, outcome):
        if self.progress.step == 6 and self.world.is_main:
            {fault}

run(Filling, sys.argv[1:])
"""

FAULTS = {
    "full": "os.system('head -c 1G /dev/zero > DISK/filler 2>/dev/null')",
    "read-only": "os.chmod('DISK/run/checkpoints', 0o555)",
}


@needs_root
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("tensorboard", [True, False])
def test_a_disk_that_fills_up_or_turns_read_only_in_the_middle_ends_with_a_message(fault, tensorboard, recipe, disk):
    script = disk.parent / "filling.py"
    script.write_text(FILLED.format(fault=FAULTS[fault].replace("DISK", str(disk))))
    common = f"--config {recipe} --run_dir {disk}/run --monitor.tensorboard {str(tensorboard).lower()}"
    # Root writes into a read-only folder, too, unless that is taken from it.
    ordinary = "setpriv --bounding-set=-dac_override,-dac_read_search"
    shell = f"""mount -t tmpfs -o size=16m tmpfs {disk} && {ordinary} python {script} {common}
        code=$?; rm -f {disk}/filler; chmod 755 {disk}/run/checkpoints; cp -a {disk}/. {disk}.kept; exit $code"""
    code, output = in_a_shell(shell)
    assert code == 2, output
    assert "cannot be written" in output and "goes on from the" in output
    kept = disk.with_name("disk.kept") / "run"
    assert [path.name for path in complete_checkpoints(kept)] == ["step_00000004"]
    assert next(iter(verify(kept))).problems == []
    train(recipe, kept)
    assert [r["step"] for r in read_metrics(kept) if r["kind"] == "train"] == list(range(1, 9))


@needs_root
def test_a_folder_that_cannot_be_written_from_the_start_is_named(recipe, disk):
    shell = f"mount -t tmpfs -o ro tmpfs {disk} && python launch/train.py --config {recipe} --run_dir {disk}/run"
    code, output = in_a_shell(shell)
    assert code == 2
    assert f"error: {disk}/run: cannot be written to (Read-only file system)" in output


def test_records_that_one_of_two_ranks_cannot_write_end_both(recipe, tmp_path):
    script = tmp_path / "filling.py"
    script.write_text(FILLED.format(fault="self.monitor._file = open('/dev/full', 'a')"))
    process = start([*launcher(2), script, "--config", recipe, "--run_dir", tmp_path / "run"])
    output, _ = process.communicate(timeout=100)
    assert process.returncode in (2, 75)  # of rank 0 or of rank 1, whichever the launcher looks at first
    assert "error: " in output and "its records cannot be written (No space left on device)" in output
    train(recipe, tmp_path / "run")
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"] == list(range(1, 9))


@pytest.mark.parametrize("output", ["/dev/full", "a pipe that nobody reads"])
def test_a_run_goes_on_without_its_log(output, recipe, tmp_path):
    command = f"python launch/train.py --config {recipe} --run_dir {tmp_path}/run"
    closed = f"{command} 2>/dev/null | head -1; exit ${{PIPESTATUS[0]}}"
    code, _ = in_a_shell(f"{command} >/dev/full 2>&1" if output == "/dev/full" else closed)
    assert code == 0
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"] == list(range(1, 9))
