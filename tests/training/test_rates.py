"""What a run says of its own speed and memory."""

import subprocess
import sys

import numpy as np

GIB = 2**30


def peak_of_a_program(code: str = "") -> int:
    """What a fresh interpreter says that it has held at most, after `code`."""
    script = (
        f"from dsllm.training.rates import peak_memory_bytes\nimport numpy as np\n{code}\nprint(peak_memory_bytes())"
    )
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)


def test_a_program_that_a_larger_one_starts_counts_its_own_memory():
    held = np.ones(GIB, np.uint8)
    assert peak_of_a_program() < held.nbytes


def test_the_peak_counts_what_was_let_go():
    assert peak_of_a_program(f"np.ones({GIB}, np.uint8)") > GIB
