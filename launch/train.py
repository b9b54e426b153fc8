"""Train a model: `deepspeed [--hostfile hosts] launch/train.py --config launch/recipes/NAME.yaml`; see `--help`."""

import sys

from dsllm.training.command import run
from dsllm.training.trainer import BaseTrainer

if __name__ == "__main__":
    run(BaseTrainer, sys.argv[1:])
