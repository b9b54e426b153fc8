"""Growing a checkpoint without training: what becomes of it, what is verified, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dsllm import load_model
from dsllm.config import LoRAConfig, RunConfig
from dsllm.errors import CheckpointError, ConfigError
from dsllm.growth import deepened, operator
from dsllm.registry import OPERATORS
from dsllm.training.checkpoints import Checkpoint, find_checkpoint
from dsllm.training.monitor import read_metrics
from dsllm.training.offline import MERGE, grow, plan_growth, read_plan, write_plan
from tests.sealing import reseal

LORA = LoRAConfig(rank=4)


@pytest.fixture
def source(trained_run) -> Checkpoint:
    """The end of a run of the plain GPT-2 of two layers."""
    return find_checkpoint(trained_run)


@pytest.fixture
def copied_run(trained_run, tmp_path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(trained_run, tmp_path / "source"))


def grown(source: Checkpoint, out: Path, choice="interpose", factor=None, **options) -> Checkpoint:
    grow(source, plan_growth(source, choice, factor, **options), out, probe_samples=3)
    return find_checkpoint(out)


def test_a_finished_run_of_the_plain_gpt2_becomes_the_beginning_of_a_deeper_ones_run(source, tmp_path):
    out = tmp_path / "deep" / "run"
    checkpoint = grown(source, out, "interpose", 3)
    config = RunConfig.from_file(out / "config.yaml")
    assert checkpoint.config() == config
    assert (config.run_dir, config.model.name, config.model.n_layer) == (out, "progressive", 6)
    assert config.train == source.config().train
    assert (checkpoint.progress, checkpoint.origin) == (source.progress, source.origin)
    assert checkpoint.asked == config.model.model_dump(mode="json")
    assert (out / "checkpoints" / "latest").read_text().strip() == "step_00000008"
    old, new = load_model(source.path).state_dict(), load_model(out).state_dict()
    for block in range(6):
        name = "mlp.up.weight"
        assert new[f"blocks.{block}.{name}"].equal(old[f"blocks.{block // 3}.{name}"])
    assert new["wte.weight"].equal(old["wte.weight"])


def test_moments_and_their_steps_go_along_and_files_that_do_not_change_are_links(source, tmp_path):
    before, after = source.store(), grown(source, tmp_path / "out").store()
    name, copy = "blocks.1.mlp.up.weight", "blocks.3.mlp.up.weight"
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        assert after[kind, copy].equal(before[kind, name])
        files = [store.folder / store.entry(kind, n).file for store, n in ((before, name), (after, copy))]
        assert files[0].samefile(files[1])
    assert after.steps[copy] == before.steps[name] == 8


def test_moments_begin_at_zero_if_that_is_asked_for(source, tmp_path):
    store = grown(source, tmp_path / "out", optimizer_state="zero").store()
    assert not list(store.names("exp_avg")) and not store.steps


@pytest.mark.parametrize(
    "choice", ["stack", "middle", "zero_init", {"name": "dropin", "steps": 5}, "mixture", "lateral"], ids=str
)
def test_every_operator_is_verified_on_held_out_samples(choice, source, tmp_path, data_folder):
    out = tmp_path / "out"
    checkpoint = grown(source, out, choice)
    receipt = json.loads((out / "growth" / checkpoint.path.name / "receipt.json").read_text())
    assert receipt["probed_on"] == f"3 val samples of {data_folder}"
    assert receipt["problems"] == []
    change = receipt["difference"]
    if receipt["preserves_function"]:
        assert change == {"loss": 0.0, "kl": 0.0, "logit": 0.0}
    else:
        assert change["logit"] > 1e-3 and receipt["loss_after"] > 0
    (record,) = [r for r in read_metrics(out) if r["kind"] == "growth"]
    assert record["operator"] == (choice["name"] if isinstance(choice, dict) else choice)
    assert record["loss_after"] == receipt["loss_after"]
    ids = torch.arange(32)[None]
    assert torch.isfinite(load_model(out)(ids).logits).all()


def test_diverging_freezes_copies_on_one_base_and_merging_makes_them_plain_again(source, tmp_path):
    diverging = grown(source, tmp_path / "a", "interpose", 2, lora=LORA)
    config = diverging.config().model
    assert (config.lora, config.bases) == (LORA, [0, 0, 2, 2])
    store = diverging.store()
    assert "blocks.1.mlp.up.weight" in store.aliases
    receipt = json.loads((tmp_path / "a" / "growth" / diverging.path.name / "receipt.json").read_text())
    assert receipt["trainable_parameters"] < receipt["parameters"] and receipt["frozen_sha256"]
    assert receipt["new"] == 4 * 4 * 2  # blocks, linear maps, A and B

    with pytest.raises(CheckpointError, match="live adapters does not grow; merge it first"):
        plan_growth(diverging, "interpose")
    merged = grown(diverging, tmp_path / "b", MERGE)
    assert merged.config().model.lora is None
    plain = grown(source, tmp_path / "c", "interpose", 2)
    ours, theirs = load_model(merged.path).state_dict(), load_model(plain.path).state_dict()
    assert all(ours[name].equal(theirs[name]) for name in theirs)  # the adapters have not trained


def test_without_the_data_random_tokens_are_taken_and_that_is_said(copied_run, tmp_path):
    gone = find_checkpoint(copied_run)
    text = (gone.path / "config.yaml").read_text()
    old = RunConfig.from_file(gone.path / "config.yaml").data.path
    (gone.path / "config.yaml").write_text(text.replace(old, "gone"))
    reseal(gone.path)
    receipt = grow(gone, plan_growth(gone, "zero_init"), tmp_path / "out")
    assert receipt.probed_on == "8 samples of random tokens, as gone is not there"
    assert receipt.difference.logit == 0
    assert receipt.loss_before == receipt.loss_after > 1


def test_a_plan_is_written_down_and_read_back(source, tmp_path):
    plan = plan_growth(source, "zero_init", 2, lora=LORA)
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json", source) == plan


def test_a_plan_for_another_checkpoint_is_refused(source, trained_run, tmp_path):
    write_plan(plan_growth(source, "stack"), tmp_path / "plan.json")
    earlier = find_checkpoint(trained_run / "checkpoints" / "step_00000004")
    with pytest.raises(CheckpointError, match=r"plan\.json: a growth plan for checkpoint \w+ does not match \w+"):
        read_plan(tmp_path / "plan.json", earlier)


def test_a_plan_that_was_changed_is_refused(source, tmp_path):
    write_plan(plan_growth(source, "zero_init"), tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"zero"', '"identity"'))
    with pytest.raises(CheckpointError, match=r"plan\.json: a growth plan has the hash \w+, \w+ was written"):
        read_plan(tmp_path / "plan.json", source)


@pytest.mark.parametrize(
    "choice, factor, lora, message",
    [
        ("interposed", 2, None, "operator = interposed"),
        ({"name": "dropin", "step": 3}, 2, None, "operator.step: no such key; did you mean operator.steps?"),
        ("untie", 2, None, "it does not divide model.uses = 1"),
        ("interpose", 1, None, "growth.factor = 1: nothing grows by it; take 2 or more"),
        ("interpose", 2, LoRAConfig(rank=64), "model.lora.rank = 64: above the width of the narrowest block"),
        ("mixture", 2, LORA, "operator = mixture: takes no adapters"),
        (MERGE, 2, None, "merge takes no factor"),
    ],
)
def test_a_wish_that_does_not_fit_the_model_is_named(choice, factor, lora, message, source):
    with pytest.raises(ConfigError) as raised:
        plan_growth(source, choice, factor, lora=lora)
    assert message in str(raised.value)


def test_there_is_nothing_to_merge_in_a_plain_model(source):
    with pytest.raises(CheckpointError, match="nothing to merge"):
        plan_growth(source, MERGE)


def test_a_damaged_tensor_is_found_and_nothing_is_left(copied_run, tmp_path):
    damaged = find_checkpoint(copied_run)
    file = damaged.path / "exp_avg" / "blocks.1.mlp.up.weight.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"exp_avg/blocks\.1\.mlp\.up\.weight\.npy: its checksum is not the one"):
        grown(damaged, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_operator_that_breaks_its_promise_leaves_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(OPERATORS, "_entries", dict(OPERATORS._entries))

    @operator("boastful", preserves_function=True)
    def boastful(model, factor):
        return deepened(model, [0, 0, 1, 1])

    with pytest.raises(CheckpointError) as raised:
        grown(source, tmp_path / "out", "boastful")
    assert "BROKEN: boastful preserves the function, yet the loss moved by" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_not_written_over(source, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="there is something already; name a new folder"):
        grown(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert grown(source, tmp_path / "empty").progress.step == 8


def test_a_folder_that_cannot_be_made_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        grown(source, tmp_path / "file" / "out")
