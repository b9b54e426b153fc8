"""How a training command ends: with its own exit code, whatever the libraries' threads do at the interpreter's end."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("pass", 0),
        ("raise Stopped(signal.SIGTERM)", 143),
        ("raise UserError('the words')", 2),
        ("sys.exit('the words of a trainer')", 1),
    ],
    ids=["finished", "stopped", "refused", "exit"],
)
def test_a_command_ends_with_its_code_though_the_interpreter_would_abort(ends, code, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import atexit, ctypes, os, signal, sys
            from dsllm.errors import Stopped, UserError
            from dsllm.training.command import run

            abort = ctypes.CFUNCTYPE(None)(os.abort)
            ctypes.pythonapi.Py_AtExit(abort)  # as a thread of gloo ends that meets no interpreter any more

            class Trainer:
                def __init__(self, config, world, fresh):
                    atexit.register(print, "says good-bye")

                def train(self):
                    print("trains")
                    {ends}

            run(Trainer, sys.argv[1:])
            """
        )
    )
    recipe = f"--config={REPOSITORY / 'launch' / 'recipes' / 'demo_gpt2.yaml'}"
    ended = subprocess.run([sys.executable, program, recipe], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == "trains\nsays good-bye\n"
    assert ("error: the words" in ended.stderr) == (code == 2)
    assert ("the words" in ended.stderr) == (code in (1, 2))
