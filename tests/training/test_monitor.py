"""Records are whole lines, once each, also after a kill and a resumption; the same scalars stand in TensorBoard."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dsllm.config import MonitorConfig
from dsllm.errors import TrainingError
from dsllm.training.chain_curve import picture
from dsllm.training.evaluation import Evaluation
from dsllm.training.monitor import METRICS, Monitor, read_metrics
from dsllm.training.progress import Progress
from dsllm.training.reasoning import ChainAccuracy

VALUES = {"loss": 2.0, "lr": 0.1, "grad_norm": None, "tokens_per_second": 10.0, "step_seconds": 0.5}


def progress(step: int) -> Progress:
    return Progress(step=step, consumed_samples=4 * step, tokens=100 * step, flops=1e6 * step)


def test_records_have_the_keys_that_scripts_rely_on(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(), progress(0), steps=10)
    monitor.train(progress(1), VALUES)
    monitor.evaluation(progress(1), "val", Evaluation(loss=1.5, bits_per_byte=0.7, tokens=100), seconds=0.1)
    monitor.event(progress(1), "end")
    train, evaluation, event = read_metrics(tmp_path)
    assert train == {"kind": "train", "step": 1, "tokens": 100, **VALUES, "flops": 1e6}
    assert evaluation["kind"] == "eval" and evaluation["split"] == "val"
    assert evaluation["perplexity"] == pytest.approx(4.4817, abs=1e-4)
    assert event["kind"] == "event" and event["event"] == "end"


def test_resuming_drops_what_came_after_the_checkpoint_and_a_cut_last_line(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(), progress(0), steps=10)
    for step in range(1, 6):
        monitor.train(progress(step), {**VALUES, "loss": float(step)})
    monitor.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "train", "st')
    resumed = Monitor(tmp_path, MonitorConfig(), progress(3), steps=10)
    resumed.train(progress(4), {**VALUES, "loss": 40.0})
    resumed.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]

    for axis, unit in (("by_step", 1), ("by_tokens", 100)):
        board = EventAccumulator(str(tmp_path / "tensorboard" / axis), purge_orphaned_data=True)
        board.Reload()
        group = "train" if unit == 1 else "train_by_tokens"
        points = [(event.step, event.value) for event in board.Scalars(f"{group}/loss")]
        assert points == [(1 * unit, 1.0), (2 * unit, 2.0), (3 * unit, 3.0), (4 * unit, 40.0)]


def test_what_is_evaluated_already_is_known_after_a_resumption(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False), progress(0), steps=10)
    monitor.evaluation(progress(3), "val", Evaluation(1.0, 1.0, 1), seconds=0.0)
    monitor.evaluation(progress(5), "val", Evaluation(1.0, 1.0, 1), seconds=0.0)
    monitor.close()
    resumed = Monitor(tmp_path, MonitorConfig(tensorboard=False), progress(4), steps=10)
    assert resumed.knows("val", 3)
    assert not resumed.knows("val", 5)
    assert not resumed.knows("test", 3)
    assert not (tmp_path / "tensorboard").exists()


def test_a_loss_that_is_no_number_is_null_in_valid_json(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False), progress(0), steps=10)
    monitor.train(progress(1), {**VALUES, "loss": float("nan")})
    line = (tmp_path / METRICS).read_text().splitlines()[0]
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None


def test_a_number_within_a_record_that_is_not_finite_is_null_too(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False), progress(0), steps=10)
    monitor.record("layers", progress(1), {"norms": [1.0, float("inf")], "pairs": {"0-1": float("nan")}})
    (record,) = read_metrics(tmp_path)
    assert record["norms"] == [1.0, None] and record["pairs"] == {"0-1": None}


def test_pictures_and_texts_stand_in_tensorboard_at_their_step(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(), progress(0), steps=10)
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    monitor.image("layers/picture", progress(2), pixels)
    monitor.text("growth/receipt", progress(3), "**exact**")
    monitor.close()
    board = EventAccumulator(str(tmp_path / "tensorboard" / "by_step")).Reload()
    (image,) = board.Images("layers/picture")
    assert (image.step, image.width, image.height) == (2, 30, 20)
    (text,) = board.Tensors("growth/receipt/text_summary")
    assert text.step == 3 and text.tensor_proto.string_val == [b"**exact**"]


def test_without_tensorboard_pictures_and_texts_go_nowhere(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False), progress(0), steps=10)
    monitor.image("layers/picture", progress(1), np.zeros((4, 4, 3), dtype=np.uint8))
    monitor.text("growth/receipt", progress(1), "exact")
    monitor.close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_accuracy_by_chain_length_stands_in_tensorboard_as_scalars_and_as_a_curve(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(), progress(0), steps=10)
    chains = ChainAccuracy({1: 20, 2: 18, 3: 0}, {1: 20, 2: 20, 3: 20})
    monitor.evaluation(progress(3), "val", Evaluation(1.0, 1.0, 60, 20, chains), seconds=0.0)
    monitor.close()
    (record,) = read_metrics(tmp_path)
    assert record["accuracy"] == {"1": 1.0, "2": 0.9, "3": 0.0} and (record["h90"], record["samples"]) == (2, 20)
    board = EventAccumulator(str(tmp_path / "tensorboard" / "by_step")).Reload()
    assert board.Scalars("val/accuracy_2")[0].value == pytest.approx(0.9) and board.Scalars("val/h90")[0].step == 3
    (image,) = board.Images("val/accuracy_by_chain")
    assert (image.width, image.height) == (600, 384)
    pixels = picture(chains)
    assert pixels.dtype == np.uint8 and (pixels == (0, 114, 178)).all(axis=2).any()  # there is a curve in its colour


def test_a_clock_that_was_set_back_doubles_no_point(tmp_path):
    """What was written before has names of times to come, which TensorBoard would read last."""
    monitor = Monitor(tmp_path, MonitorConfig(), progress(0), steps=10)
    for step in range(1, 6):
        monitor.train(progress(step), {**VALUES, "loss": float(step)})
    monitor.close()
    for file in (tmp_path / "tensorboard").rglob("events.out.tfevents.*"):
        first, second, third, _, *rest = file.name.split(".")
        file.rename(file.with_name(".".join([first, second, third, "4000000000", *rest])))
    resumed = Monitor(tmp_path, MonitorConfig(), progress(3), steps=10)
    resumed.train(progress(4), {**VALUES, "loss": 40.0})
    resumed.close()
    board = EventAccumulator(str(tmp_path / "tensorboard" / "by_step"), purge_orphaned_data=True)
    board.Reload()
    points = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_records_that_cannot_be_written_are_one_message(tmp_path):
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False), progress(0), steps=10)
    monitor._file.close()
    monitor._file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(TrainingError, match=r"its records cannot be written \(No space left on device\); free disk"):
        monitor.event(progress(1), "end")


def test_what_came_of_a_run_stands_beside_what_was_asked_for(trained_run):
    board = EventAccumulator(str(trained_run / "tensorboard" / "by_step")).Reload()
    last = {r["split"]: r["loss"] for r in read_metrics(trained_run) if r["kind"] == "eval"}
    for split, loss in last.items():
        assert board.Scalars(f"last/{split}_loss")[-1].value == pytest.approx(loss)
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told = HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["model.n_layer"].number_value == 2 and told["train.lr"].number_value == 0.01
    assert told["train.precision"].string_value == "fp32"


def test_the_first_look_is_at_loss_rate_speed_and_memory(trained_run):
    board = EventAccumulator(str(trained_run / "tensorboard" / "by_step")).Reload()
    content = board.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    layout = Layout.FromString(content)
    (training,) = (category for category in layout.category if category.title == "training")
    shown = [tag for chart in training.chart for tag in chart.multiline.tag]
    assert {"train/loss", "val/loss", "train/lr", "train/tokens_per_second", "train/memory_bytes"} <= set(shown)
    by_tokens = EventAccumulator(str(trained_run / "tensorboard" / "by_tokens")).Reload()
    assert set(shown) <= {*board.Tags()["scalars"], *by_tokens.Tags()["scalars"]}
