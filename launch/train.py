"""Train a model, on one machine or many; the same command on the same run_dir resumes.

    deepspeed [--hostfile hosts] launch/train.py --config launch/recipes/NAME.yaml [--section.key value ...] [--fresh]

--fresh sets aside what the run's folder holds and starts over.
"""

import sys

from dsllm.command_line import parse
from dsllm.errors import Stopped
from dsllm.training.hostfile import check_launcher
from dsllm.training.trainer import BaseTrainer
from dsllm.training.world import joined, one_voice


def main(argv: list[str]) -> None:
    with one_voice():
        arguments = parse(argv, __doc__ or "")
        check_launcher()
        try:
            with joined() as world:
                BaseTrainer(arguments.config, world, arguments.fresh).train()
        except Stopped as stopped:
            raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    main(sys.argv[1:])
