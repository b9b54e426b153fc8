"""The whole of a training command, for any trainer: what `launch/train.py` runs, and a script of one's own.

if __name__ == "__main__":
    run(MyTrainer, sys.argv[1:])
"""

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from dsllm.command_line import parse
from dsllm.config import RunConfig
from dsllm.errors import Reinitialise, Stopped
from dsllm.training.console import speak_into_the_void
from dsllm.training.hostfile import check_launcher
from dsllm.training.orphan import OrphanWatch
from dsllm.training.progressive import ProgressiveTrainer
from dsllm.training.restart import restart
from dsllm.training.trainer import BaseTrainer
from dsllm.training.world import World, joined, one_voice

USAGE = """Train a model, on one machine or many; the same command on the same run_dir resumes.

    deepspeed [--hostfile hosts] launch/train.py --config launch/recipes/NAME.yaml [--section.key value ...] [--fresh]

--fresh sets aside what the run's folder holds and starts over. --dry_run says what the run will take in memory and
time (see launch/plan.py), and ends. Every key of the configuration is an option:"""


def trainer_for(config: RunConfig, world: World, fresh: bool) -> BaseTrainer:
    """The trainer that a configuration asks for: one that grows, if it has a `growth` section."""
    trainer = BaseTrainer if config.growth is None else ProgressiveTrainer
    return trainer(config, world, fresh)


def run(trainer: Callable[[RunConfig, World, bool], BaseTrainer], argv: Sequence[str], usage: str = USAGE) -> NoReturn:
    """Train as the command line says, and end the process; `trainer` is a class of trainers, or what makes one.

    Exit codes: 2 after one message for what the user can put right; 143 or 130 when a signal stopped the run, after a
    complete checkpoint; 75 when another rank was lost or has not come. Errors that nobody foresaw are raised.
    """
    speak_into_the_void()
    try:
        with one_voice():
            _train(trainer, argv, usage)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        _leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    _leave(0)


def _train(trainer: Callable[[RunConfig, World, bool], BaseTrainer], argv: Sequence[str], usage: str) -> None:
    """Train to the end, or begin anew; raises `SystemExit` with its code where a signal, `--help` or Ctrl-C ends it."""
    arguments = parse(argv, usage)
    check_launcher()
    if arguments.dry_run:
        from dsllm.planning.here import plan_here  # a second of imports that no other start needs

        if os.environ.get("RANK", "0") == "0":
            print(plan_here(arguments.config))
        return
    try:
        config, train = arguments.config, arguments.config.train
        with OrphanWatch(), joined(str(config.run_dir), train.lost_after, train.meet_within) as world:
            trainer(config, world, arguments.fresh).train()
    except Reinitialise:
        restart()
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:  # before training began: there is nothing to save
        raise SystemExit(130) from None


def _leave(code: int) -> NoReturn:
    """End the process without taking the interpreter down; what was registered with `atexit` is done.

    DeepSpeed holds on to its process groups, so gloo's threads outlive the groups' end. One that lets go of its last
    tensor only while the interpreter is being taken down aborts the process (pytorch #190489, #179291), and with it
    the exit code that a scheduler goes by.
    """
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # a reader that has gone does not change how the run ended
        os._exit(code)
