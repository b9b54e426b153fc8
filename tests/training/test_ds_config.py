"""DeepSpeed's configuration is merged from its file and the run's; a contradiction is said in words."""

import json
from pathlib import Path

import pytest

from dsllm.config import TrainConfig
from dsllm.errors import ConfigError
from dsllm.training.backend import import_deepspeed
from dsllm.training.ds_config import complete_ds_config, merge, read_ds_config

TRAIN = TrainConfig(micro_batch_size=4, global_batch_size=32, grad_clip=0.5)


def test_batch_sizes_precision_and_clipping_come_from_the_run():
    merged = merge({"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}, TRAIN, 2, "bf16", "cpu")
    assert merged["zero_optimization"] == {"stage": 2}
    assert merged["train_batch_size"] == 32
    assert merged["train_micro_batch_size_per_gpu"] == 4
    assert merged["gradient_accumulation_steps"] == 4
    assert merged["gradient_clipping"] == 0.5
    assert not merged["fp16"]["enabled"]


def test_what_says_the_same_or_auto_is_no_contradiction():
    given = {"train_batch_size": "auto", "gradient_clipping": 0.5, "fp16": {"enabled": True, "loss_scale_window": 50}}
    merged = merge({**given, "zero_optimization": {"stage": 1}}, TRAIN, 2, "fp16", "cpu")
    assert merged["train_batch_size"] == 32
    assert merged["fp16"] == {"enabled": True, "loss_scale_window": 50}


@pytest.mark.parametrize("stage, device", [(0, "cpu"), (0, "cuda"), (1, "cuda"), (2, "cpu"), (3, "cpu")])
def test_bf16_is_autocast_where_sums_in_bf16_would_be_wrong(stage, device):
    merged = merge({"zero_optimization": {"stage": stage}}, TRAIN, 1, "bf16", device)
    assert merged["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not merged["bf16"]["enabled"]


def test_bf16_on_a_gpu_keeps_fp32_masters_and_sums_gradients_in_fp32():
    merged = merge({"zero_optimization": {"stage": 2}}, TRAIN, 1, "bf16", "cuda")
    assert merged["bf16"]["enabled"] and merged["data_types"] == {"grad_accum_dtype": "fp32"}


def test_fp16_without_zero_is_refused():
    with pytest.raises(ConfigError, match=r"stage = 0: does not work with train\.precision fp16"):
        merge({}, TRAIN, 1, "fp16", "cpu")


def test_fp16_is_refused_where_deepspeed_finds_no_instructions_for_it(monkeypatch):
    monkeypatch.setattr(type(import_deepspeed().accelerator.get_accelerator()), "is_fp16_supported", lambda self: False)
    train = TRAIN.model_copy(update={"ds_config": Path("ds_configs/zero2.json")})
    with pytest.raises(ConfigError, match=r"train\.precision = fp16: .* cannot; take bf16, fp32 or auto"):
        complete_ds_config(train, 1, "fp16", "cpu")
    assert complete_ds_config(train, 1, "bf16", "cpu")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"zero_optimisation": {"stage": 2}}, "zero_optimisation: no such key; did you mean zero_optimization?"),
        ({"zero_optimization": 2}, "zero_optimization = 2: an object of keys and values is needed here"),
        ({"bf16": True}, "bf16 = True: an object of keys and values is needed here"),
        ({"zero_optimization": {"stage": 7}}, "DeepSpeed does not take it: "),
        ({"zero_optimization": {"stage": 2, "overlap": True}}, "DeepSpeed does not take it: "),
        ({"gradient_clipping": 2.0}, "gradient_clipping = 2.0: the run says 0.5"),
    ],
)
def test_what_deepspeed_would_ignore_or_choke_on_is_refused(given, message, tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(given))
    with pytest.raises(ConfigError) as raised:
        complete_ds_config(TRAIN.model_copy(update={"ds_config": path}), 1, "fp32", "cpu")
    assert message in str(raised.value)


def test_every_contradiction_is_named_with_both_values():
    given = {
        "train_batch_size": 64,
        "gradient_accumulation_steps": 3,
        "bf16": {"enabled": True},
        "optimizer": {"type": "Adam"},
        "scheduler": {"type": "WarmupLR"},
    }
    with pytest.raises(ConfigError) as raised:
        merge(given, TRAIN, 2, "fp32", "cpu")
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
        assert merge(given, TRAIN, 1, "fp32", "cpu")["zero_optimization"]["stage"] == int(path.stem[4])
