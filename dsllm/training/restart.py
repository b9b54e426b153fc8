"""The same command once more, in the same process: how a run gets a new engine.

    rank 0   train ─ grown checkpoint ─ exec ─ meet ─ train …         one process id, one launcher
    rank 1   train ────────────────── ─ exec ─ meet ─ train …

An engine of ZeRO-3 that is torn down keeps its model in memory (DeepSpeed #7204, open): so the process begins anew, and
what follows a growth event is what follows a kill.
"""

import os
import sys

from dsllm.command_line import FRESH


def restart() -> None:
    """Run this process's command anew, but for --fresh. Called on every rank once the process group is destroyed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *(word for word in sys.orig_argv[1:] if word != FRESH)])
