"""Ranks whose program, configuration or data differ do not begin: host, rank, key and both values are named."""

import shutil
from pathlib import Path

import pytest

from dsllm.training.monitor import METRICS
from tests.forked import forked

SCRIPT = """
import os, sys
from dsllm.training import agreement
from dsllm.training.command import run, trainer_for

if os.environ["RANK"] == "1":
    sys.argv += sys.argv.pop().split("|")[1:]
else:
    sys.argv += sys.argv.pop().split("|")[:1]
OTHER
run(trainer_for, [word for word in sys.argv[1:] if word])
"""


def disagreeing(tmp_path: Path, recipe: Path, options: str = "|", other: str = "") -> str:
    """Two ranks with the options before and after the bar; gives what they say, having exited with 2."""
    script = tmp_path / "disagreeing.py"
    script.write_text(SCRIPT.replace("OTHER", other))
    return forked([script, "--config", recipe, "--run_dir", tmp_path / "run", options], ranks=2, expect=2)


@pytest.mark.slow
def test_another_value_of_a_key_is_named_and_nothing_is_written(recipe, tmp_path):
    output = disagreeing(tmp_path, recipe, "--train.lr=0.01|--train.lr=0.02")
    assert "the ranks do not agree: train.lr: 0.02 at rank 1 on " in output and ", 0.01 at rank 0 on " in output
    assert output.count("error: ") == 1 and "Traceback" not in output
    assert not (tmp_path / "run" / METRICS).exists()


@pytest.mark.slow
def test_another_version_of_a_package_or_other_code_is_named(recipe, tmp_path):
    version = "    agreement._version = lambda package: '9.9' if package == 'torch' else '1'"
    code = "    agreement.code_checksum = lambda package: 'changed'"
    output = disagreeing(tmp_path, recipe, "|", f"if os.environ['RANK'] == '1':\n{version}\n{code}")
    assert "torch: 9.9 at rank 1 on " in output and "code of dsllm: changed at rank 1 on " in output


@pytest.mark.slow
def test_another_manifest_of_the_same_folder_is_named(recipe, data_folder, tmp_path):
    copies = {}
    for name in ("mine", "yours"):
        copies[name] = tmp_path / name / "data"
        shutil.copytree(data_folder, copies[name])
    manifest = copies["yours"] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"split_rule": {', '"split_rule": {"note": 1, '))
    # The same path on each rank, as on hosts with disks of their own.
    link = f"os.chdir({str(tmp_path)!r} + '/' + ('yours' if os.environ['RANK'] == '1' else 'mine'))"
    zero = Path("ds_configs/zero0.json").resolve()
    same = f"--data.path=data --train.ds_config={zero}"
    output = disagreeing(tmp_path, recipe, "|", f"sys.argv += {same.split()}\n{link}")
    assert "data.path data (its manifest.json): " in output
