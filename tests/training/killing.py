"""Training processes that get a signal at a named point of a structural event, and ones that are left alone.

    live(["--config=…"], folder, ranks=2, end="SIGKILL@1@the grown tensors are half written")     # [-9, -9]
    live(["--config=…"], folder, ranks=2)                                                         # [0, 0]

A process begins as a fork (`tests.forked`); what it does then is what `launch/train.py` does. After a structural event
it executes itself anew for good, or becomes another fork, which is quicker. A point is before or after a call of one
function: where that is in the code is all that a point knows of it.
"""

import importlib
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # when it executes itself anew

from tests.forked import begin, kill

END = "--end="
"""SIGNAL@RANK@POINT: that rank sends itself a signal there."""

FULL = "--full="
"""BYTES: to this process the disk is full once a file has so many."""


@dataclass(frozen=True)
class Point:
    """Before or after a call of a function."""

    when: Literal["before", "after"]
    function: str
    """As `module:attribute.attribute`."""
    call: int = 1
    """Which one, of those that count."""
    of: str = ""
    """Those count whose first argument ends so, as text."""


POINTS = {
    "the decision is written down": Point("after", "dsllm.training.growth_state:Decisions.note"),
    "the save is half written": Point("before", "dsllm.training.checkpoints:write_tensor", 11),
    "the save has no index": Point("before", "dsllm.store:TensorStore.finish"),
    "the save has no marker": Point("before", "dsllm.training.checkpoints:write_atomically", of="002/COMPLETE"),
    "the save is not the latest": Point("after", "dsllm.training.checkpoints:write_atomically", of="002/COMPLETE"),
    "the probe is half written": Point("before", "zipfile:ZipFile.open", 2),
    "the probe is taken": Point("after", "dsllm.training.probe:Probe.save"),
    "the plan is written": Point("before", "dsllm.training.growth_state:Event.write"),
    "the grown tensors are half linked": Point("before", "dsllm.growth.grow:link_tensor", 9),
    "the grown tensors are half written": Point("before", "dsllm.growth.grow:write_tensor", 5),
    "the grown checkpoint has no marker": Point(
        "before", "dsllm.training.checkpoints:write_atomically", of=".01/COMPLETE"
    ),
    "the grown checkpoint is not the latest": Point(
        "after", "dsllm.training.checkpoints:write_atomically", of=".01/COMPLETE"
    ),
    "the grown checkpoint is there": Point("before", "dsllm.training.growth_state:Event.write", 2),
    "the old process ends": Point("after", "dsllm.data.batches:Prefetcher.close"),
    "the process begins anew": Point("before", "os:execv"),
    "the grown checkpoint is half loaded": Point("before", "dsllm.training.tensors:EngineTensors._put", 9),
    "the engine is not verified": Point("before", "dsllm.training.growing:check_tensors"),
    "the gradients are not verified": Point("before", "dsllm.training.growing:check_gradients"),
    "the event is recorded without a receipt": Point("before", "dsllm.training.receipt:Receipt.write"),
    "the receipt is written": Point("after", "dsllm.training.receipt:Receipt.write"),
}
"""Of the first structural event of a life, in their order; the last ones come after the process began anew."""

PLAIN_POINTS = {
    "an evaluation has begun": Point("before", "dsllm.training.judge:evaluate", 2),
    "an evaluation is not recorded": Point("before", "dsllm.training.monitor:Monitor.evaluation", 2),
    "a step is not recorded": Point("before", "dsllm.training.monitor:Monitor.train", 3),
    "a tensor is written": Point("after", "dsllm.training.checkpoints:write_tensor", 7),
    "the index is not written": Point("before", "dsllm.store:TensorStore.finish", 2),
    "the marker is not written": Point("before", "dsllm.training.checkpoints:write_atomically", 2, of="/COMPLETE"),
    "latest names the one before": Point("before", "dsllm.training.checkpoints:write_atomically", 2, of="/latest"),
    "an old checkpoint has lost its marker": Point("before", "shutil:rmtree"),
}
"""Of a run that does not grow."""


def live(
    arguments: Sequence[str], folder: Path, ranks: int = 1, end: str | None = None, again: bool = False
) -> list[int]:
    """Train on processes of this machine until they end; when one is killed, the others are too.

    `again`: what executes itself anew becomes another fork. Gives the exit codes by rank; what the processes print is
    added to `folder`/log.
    """
    processes = begin([__file__, *arguments, *([END + end] if end else [])], folder / "log", ranks, again=again)
    running = {process.sentinel: process for process in processes}
    while running:
        ended = [running.pop(sentinel) for sentinel in wait(list(running), timeout=120)]  # type: ignore[call-overload]
        if not ended or any(process.exitcode not in (0, 2, 143) for process in ended):
            for process in running.values():  # as a launcher does, or a host that loses power
                kill(process)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]  # type: ignore[misc]


def main(arguments: Sequence[str]) -> None:
    """Train as `launch/train.py` does; with `--end` to an end on the way."""
    from dsllm.training.command import run, trainer_for

    for size in (int(word.removeprefix(FULL)) for word in arguments if word.startswith(FULL)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))  # no file may grow beyond it
    for end in (word.removeprefix(END) for word in arguments if word.startswith(END)):
        name, rank, point = end.split("@")
        if rank == os.environ.get("RANK", "0"):
            arm({**POINTS, **PLAIN_POINTS}[point], signal.Signals[name])
    run(trainer_for, [word for word in arguments if not word.startswith((END, FULL))])


def arm(point: Point, signum: signal.Signals) -> None:
    """From now on the process sends itself a signal at a point."""
    module, _, path = point.function.partition(":")
    owner: Any = importlib.import_module(module)
    *within, name = path.split(".")
    for attribute in within:
        owner = getattr(owner, attribute)
    function, calls = getattr(owner, name), 0

    def ending(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        counts = not point.of or str(arguments[0]).endswith(point.of)
        calls += counts
        last = counts and calls == point.call
        if last and point.when == "before":
            os.kill(os.getpid(), signum)
        result = function(*arguments, **options)
        if last:
            os.kill(os.getpid(), signum)
        return result

    setattr(owner, name, ending)


if __name__ == "__main__":
    main(sys.argv[1:])
