"""What the server of `tests.forked` has imported: all that a training process does."""

import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import dsllm.training.command  # noqa: F401
from dsllm.training.backend import import_deepspeed, import_muon

import_deepspeed()
import_muon()
