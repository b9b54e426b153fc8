"""Errors end a command in words, and a reader that has had enough ends it without any."""

import subprocess
import sys

import pytest

from dsllm.errors import user_errors_exit

COMMAND = """
import os, sys
from dsllm.errors import UserError, user_errors_exit

with user_errors_exit():
    {body}
"""


def _run(body: str, reader: str = "cat") -> tuple[int, str, str]:
    pipe = f'"$0" -c "$1" | {reader}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", pipe, sys.executable, COMMAND.format(body=body)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_a_user_error_is_its_message_and_exit_code_2():
    assert _run("raise UserError('x = 3: too large; take less')") == (2, "", "error: x = 3: too large; take less\n")


@pytest.mark.parametrize("body", ["print('line\\n' * 10**6)", "[print('line', flush=True) for _ in range(10**6)]"])
def test_a_reader_that_closes_early_ends_the_command_without_a_word(body):
    assert _run(body, "head -1") == (141, "line\n", "")


def test_what_little_is_left_for_a_closed_reader_is_no_error_either():
    assert _run("import time; time.sleep(1); print('line')", "exec true")[::2] == (141, "")


def test_another_pipe_that_broke_is_no_such_reader():
    code, _, said = _run("r, w = os.pipe(); os.close(r); os.write(w, b'x')")
    assert code == 1 and "BrokenPipeError" in said


def test_ctrl_c_is_a_sentence_and_exit_code_130_where_there_are_words_for_it(capsys):
    with pytest.raises(SystemExit) as ended, user_errors_exit("stopped"):
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped\n"
    with pytest.raises(KeyboardInterrupt), user_errors_exit():
        raise KeyboardInterrupt
