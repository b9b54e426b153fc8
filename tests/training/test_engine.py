"""DeepSpeed's configuration is merged from its file and the run's; a contradiction is said in words."""

import json
from pathlib import Path

import pytest

from dsllm.config import TrainConfig
from dsllm.errors import ConfigError
from dsllm.training.engine import merge, read_ds_config

TRAIN = TrainConfig(micro_batch_size=4, global_batch_size=32, grad_clip=0.5)


def test_batch_sizes_precision_and_clipping_come_from_the_run():
    merged = merge({"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}, TRAIN, 2, "bf16")
    assert merged["zero_optimization"] == {"stage": 2}
    assert merged["train_batch_size"] == 32
    assert merged["train_micro_batch_size_per_gpu"] == 4
    assert merged["gradient_accumulation_steps"] == 4
    assert merged["gradient_clipping"] == 0.5
    assert (merged["bf16"]["enabled"], merged["fp16"]["enabled"]) == (True, False)


def test_what_says_the_same_or_auto_is_no_contradiction():
    given = {"train_batch_size": "auto", "gradient_clipping": 0.5, "fp16": {"enabled": True, "loss_scale_window": 50}}
    merged = merge({**given, "zero_optimization": {"stage": 1}}, TRAIN, 2, "fp16")
    assert merged["train_batch_size"] == 32
    assert merged["fp16"] == {"enabled": True, "loss_scale_window": 50}


def test_half_precision_without_zero_is_autocast_or_refused():
    merged = merge({"zero_optimization": {"stage": 0}}, TRAIN, 2, "bf16")
    assert merged["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not merged["bf16"]["enabled"]
    with pytest.raises(ConfigError, match=r"train\.precision = fp16: does not work at ZeRO stage 0"):
        merge({"zero_optimization": {"stage": 0}}, TRAIN, 2, "fp16")


def test_every_contradiction_is_named_with_both_values():
    given = {
        "train_batch_size": 64,
        "gradient_accumulation_steps": 3,
        "bf16": {"enabled": True},
        "optimizer": {"type": "Adam"},
        "scheduler": {"type": "WarmupLR"},
    }
    with pytest.raises(ConfigError) as raised:
        merge(given, TRAIN, 2, "fp32")
    message = str(raised.value)
    assert message.startswith("configuration: 5 problems")
    assert "train_batch_size = 64: the run says 32" in message
    assert "gradient_accumulation_steps = 3: the run says 4" in message
    assert "bf16.enabled = True: the run says False" in message
    assert "optimizer: comes from train.lr" in message
    assert "scheduler: comes from train.schedule" in message


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_an_unreadable_file_is_named(tmp_path, text):
    path = tmp_path / "zero9.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"train\.ds_config = .*zero9\.json"):
        read_ds_config(path)


def test_the_shipped_files_leave_to_the_run_what_is_the_runs():
    files = sorted(Path("ds_configs").glob("*.json"))
    assert [path.stem for path in files] == ["zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]
    for path in files:
        given = json.loads(path.read_text())
        assert merge(given, TRAIN, 1, "fp32")["zero_optimization"]["stage"] == int(path.stem[4])
