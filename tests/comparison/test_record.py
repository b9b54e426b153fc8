"""What a record says of a run, and which runs have none."""

import copy

import pytest

from dsllm.comparison.arms import arms_of
from dsllm.comparison.record import RunRecord
from dsllm.comparison.report import table
from dsllm.errors import UserError
from dsllm.training.monitor import read_metrics
from tests.comparison.records import changed, rewritten


def test_a_record_says_what_the_run_recorded(record, trained_run):
    metrics = read_metrics(trained_run)
    train_records = [r for r in metrics if r["kind"] == "train"]
    (test,) = [r for r in metrics if r["kind"] == "eval" and r["split"] == "test"]
    assert (record.test_loss, record.bits_per_byte) == (test["loss"], test["bits_per_byte"])
    assert (record.steps, record.tokens, record.flops) == (8, train_records[-1]["tokens"], train_records[-1]["flops"])
    assert record.train_loss == train_records[-1]["loss"]  # of 8 steps the last tenth is the last
    assert record.test_batches == 4 and test["samples"] == 7  # 7 samples, 2 in a batch
    assert (record.model, record.layers, record.heads, record.widths, record.micro_batch) == ("gpt2", "2", 2, "32", 2)
    steady = sorted(r["step_seconds"] for r in train_records[2:])
    assert record.step_ms == pytest.approx(1000 * (steady[2] + steady[3]) / 2)
    assert [point.tokens for point in record.validation] == [0, 4 * 256, 8 * 256]
    assert record.validation[-1].flops == record.flops
    assert record.validation[-1].seconds == pytest.approx(sum(r["step_seconds"] for r in train_records))


def test_a_growth_event_is_charged_and_a_step_is_that_of_all_stages(trained_run, tmp_path):
    def grown(records):
        for record in records:
            if record["kind"] == "train":
                step = record["step"]
                record.update(
                    step_seconds=1.0 if step <= 3 else 3.0, flops=step * 10.0 if step <= 3 else step * 30 - 60
                )
        event = {
            "kind": "growth",
            "step": 3,
            "tokens": 3 * 256,
            "checkpoint": "step_00000003.01",
            "plan": "5f0c",
            "operator": "stack",
            "seconds": {"save": 4.0, "grow": 2.0},
        }
        # Step 3 was not recorded any more: what it cost is known of the stage's others.
        return [record for record in records if record.get("step") != 3] + [event]

    record = RunRecord.read(rewritten(trained_run, tmp_path / "grown", grown))
    assert record.step_ms == pytest.approx((3 * 1000 + 5 * 3000) / 8)
    assert record.tokens_per_second == pytest.approx(256 / (18 / 8))
    (event,) = record.growth
    assert (event.flops, event.seconds) == (pytest.approx(30), pytest.approx(3 + 6))
    assert [point.seconds for point in record.validation] == pytest.approx([0, 3 + 6 + 3, 3 + 6 + 5 * 3])


def test_a_record_comes_back_from_its_file(record, tmp_path):
    record.write(tmp_path / "a.json")
    assert RunRecord.read(tmp_path / "a.json") == record


def test_a_record_of_before_a_key_came_is_one_of_its_default(record, tmp_path):
    older = copy.deepcopy(record.arm)
    del older["train"]["beta2"], older["data"]["mask_documents"], older["model"]["positions"]
    changed(record, arm=older).write(tmp_path / "older.json")
    assert RunRecord.read(tmp_path / "older.json").key == record.key
    unknown = {**older, "model": {"name": "of a module that is not here"}}
    changed(record, arm=unknown).write(tmp_path / "unknown.json")
    assert RunRecord.read(tmp_path / "unknown.json").arm == unknown


def test_runs_in_another_precision_or_on_other_ranks_are_another_arm_and_saving_makes_none(record):
    assert record.arm["precision"] == "fp32" and record.arm["ranks"] == 1
    assert not {"checkpoint_every", "seed"} & set(record.arm["train"])
    assert record.arm["data"]["path"] == record.scored.data


def test_a_run_that_diverged_is_refused_and_a_loss_that_is_no_number_is_left_blank(trained_run, tmp_path):
    def without(kind, split=None):
        def null(records):
            for record in records:
                if record["kind"] == kind and record.get("split") == split:
                    record["loss"] = None
            return records

        return rewritten(trained_run, tmp_path / kind, null)

    record = RunRecord.read(without("train"))
    assert record.train_loss is None and dict(table(arms_of([record])))["training loss at the end"] == ""
    with pytest.raises(UserError, match="its test loss is no number, the run has diverged"):
        RunRecord.read(without("eval", "test"))
