"""launch/plan.py: a run's memory, traffic and time before it begins, and one message for what makes no plan."""

import json

import pytest

from dsllm.config import RunConfig
from dsllm.models import build_model
from dsllm.planning.activations import count_activations
from dsllm.planning.plan import bytes_sent
from tests.forked import forked

RECIPES = "launch/recipes"
H100 = ["--gpu", "h100", "--nodes", 8, "--gpus", 8]


def planned(recipe: str, *words: object) -> dict:
    command = ["launch/plan.py", "--config", f"{RECIPES}/{recipe}.yaml", "--json", *words]
    return json.loads(forked(command, seconds=120).splitlines()[-1])


def test_a_plan_for_eight_hosts_says_what_each_stage_takes():
    found = planned("gpt2_124m", *H100, "--train.global_batch_size", 1024, "--price", 2)
    (stage,) = found["stages"]
    assert stage["parameters"] == 123_689_472 == sum(stage["parts"].values())
    memory = stage["memory"]
    assert next(iter(memory)) == "zero1"
    assert {"zero0", "zero2", "zero3", "zero2_offload", "zero3_offload"} <= set(memory)
    peaks = {name: way["peak"] for name, way in memory.items()}
    assert peaks["zero3"] < peaks["zero2"] < peaks["zero1"]
    assert memory["zero2"]["host"] == 0 < memory["zero2_offload"]["host"]
    assert all(way["fits"] for way in memory.values())
    low, high = stage["step_seconds"]
    assert 0 < low <= high == pytest.approx(stage["compute_seconds"] + stage["transfer_seconds"])
    assert found["run"]["cost"] == [2 * hours for hours in found["run"]["device_hours"]]


def test_what_does_not_fit_is_said():
    sizes = ["--model.n_layer=48", "--model.n_head=32", "--model.n_embd=4096", "--train.global_batch_size=8"]
    (stage,) = planned("gpt2_124m", "--gpu", "rtx3090", *sizes, "--train.micro_batch_size=1")["stages"]
    assert not any(stage["memory"][name]["fits"] for name in ("zero0", "zero1", "zero2"))


def test_a_run_that_grows_is_planned_model_by_model():
    found = planned("origin_progressive_grow", "--gpu", "a100", "--gpus", 2)
    assert [stage["model"]["n_layer"] for stage in found["stages"]] == [3, 6, 6, 12, 12]
    assert sum(stage["steps"] for stage in found["stages"]) == 90_000
    assert found["stages"][1]["trainable_parameters"] < found["stages"][1]["parameters"]
    assert "adapters" in found["stages"][1]["parts"] and "adapters" not in found["stages"][2]["parts"]


def test_a_plan_takes_the_sizes_of_what_the_run_begins_with(pretrained):
    (stage,) = planned("grow_pretrained_gpt2", "--gpu", "h100", "--init_from", f"hf:{pretrained}")["stages"]
    assert (stage["model"]["n_layer"], stage["model"]["n_embd"], stage["model"]["vocab_size"]) == (3, 32, 257)


def test_the_table_names_its_assumptions():
    command = ["launch/plan.py", "--config", f"{RECIPES}/origin_conv_attention.yaml", "--gpu", "h200", "--share", 0.2]
    told = forked(command, seconds=120)
    assert "GiB per rank, of 141 less 1.5" in told and "convolutions" in told
    assert "products in bf16 reach 20% of 989 TFLOP/s" in told and "kWh at most" in told


def test_a_dry_run_says_what_the_run_at_hand_takes_and_writes_nothing(recipe, tmp_path):
    told = forked(["launch/train.py", "--config", recipe, "--run_dir", tmp_path / "run", "--dry_run"], ranks=2)
    assert "gpt2, 2 layers" in told and "zero2 " in told and "on 2 devices" in told and told.count("assumed:") == 1
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "a GPU that is not known": (
        ["--gpu", "h300"],
        "--gpu h300: not known; take h100, h200, a100,",
    ),
    "figures that make no sense": (["--gpu", "{memory: -1, tflops: 3}"], "gpu.memory = -1"),
    "batches that do not come out whole": ([*H100], "train.global_batch_size = 512: 64 ranks with"),
    "a share above one": (["--gpu", "h100", "--share", 3], "--share 3.0: take a part of the peak"),
    "a key that is none": (["--gpu", "h100", "--train.stepz", 3], "train.stepz: no such key"),
    "no option": (["--gpu", "h100", "stray"], "'stray': an option was expected"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_makes_no_plan_is_one_message(name):
    words, message = MISTAKES[name]
    output = forked(["launch/plan.py", "--config", f"{RECIPES}/gpt2_124m.yaml", *words], expect=2)
    assert output.startswith("error: ") and message in output and "Traceback" not in output


def test_activations_are_counted_as_a_backward_pass_frees_them():
    """A block of GPT-2 keeps 17 times its input with learned positions; 2 more are the turned q and k."""
    config = RunConfig.from_file(f"{RECIPES}/demo_gpt2.yaml", ["model.n_layer=1", "model.context=64"]).model
    config = config.model_copy(update={"vocab_size": 320})
    two = config.model_copy(update={"n_layer": 2})
    one, more = (count_activations(section, "none", half=False, autocast=False).sequence for section in (config, two))
    floats = (more - one) / 4 / (config.context * config.n_embd)
    assert build_model(config).count_parameters() > 0
    assert floats == pytest.approx(19, abs=0.2)


def test_recomputing_blocks_keeps_their_inputs_and_one_block():
    config = RunConfig.from_file(f"{RECIPES}/demo_gpt2.yaml", ["model.n_layer=6"]).model
    config = config.model_copy(update={"vocab_size": 320})
    whole, recomputed = (count_activations(config, policy, False, False) for policy in ("none", "all"))
    assert whole.recomputed == 0 and recomputed.sequence < whole.sequence / 6
    assert recomputed.recomputed == pytest.approx(whole.sequence / 6, rel=0.1)


def test_rings_send_what_they_send():
    many = {"ranks": 4, "parameters": 100, "trainable": 100, "accumulation": 2, "by_weights": False}
    assert bytes_sent({}, **many) == 2 * 0.75 * 400
    assert bytes_sent({"stage": 1}, **many) == 2 * 0.75 * 400
    assert bytes_sent({"stage": 2}, **many) == 3 * 0.75 * 400
    assert bytes_sent({"stage": 3}, **many) == 2 * 3 * 0.75 * 400
