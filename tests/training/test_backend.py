"""What a run does without: torch's compiler, where nobody asks for compiled code."""

import sys

import pytest

from tests.launching import run

MUON = """
import sys
import torch
from dsllm.training.backend import import_deepspeed, import_muon

import_deepspeed()
import_muon()
from deepspeed.runtime.zero.muon.original_muon import zeropower_via_newtonschulz5
assert "torch._inductor.compile_fx" not in sys.modules
compiled = []
torch.compile = lambda function: compiled.append(function.__name__) or function
for _ in range(2):
    x = zeropower_via_newtonschulz5(torch.randn(8, 16), steps=20)
print(compiled, ((x @ x.T).float() - torch.eye(8)).abs().max().item() < 0.7)
"""


def test_muon_is_compiled_once_when_it_is_called():
    assert run([sys.executable, "-c", MUON]).splitlines()[-1] == "['zeropower_via_newtonschulz5'] True"


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_that_compiles_nothing_imports_no_compiler(recipe, tmp_path, stage):
    options = ["--train.steps", 1, "--train.ds_config", f"ds_configs/zero{stage}.json", "--run_dir", tmp_path / "run"]
    printed = run([sys.executable, "-X", "importtime", "launch/train.py", "--config", recipe, *options])
    modules = {line.rpartition("|")[2].strip() for line in printed.splitlines()}
    assert "deepspeed.runtime.engine" in modules and "torch._inductor.compile_fx" not in modules
