"""What the server of `tests.forked` has imported: all that a training process does."""

import gc

import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import dsllm.training.command  # noqa: F401
from dsllm.training.backend import import_deepspeed, import_muon

import_deepspeed()
import_muon()
# Else each collection in a fork reads, and so copies, all that was imported.
gc.collect()
gc.freeze()
