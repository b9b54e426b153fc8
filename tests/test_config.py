"""The configuration: read with overrides, saved and read back, and every problem said at once."""

from pathlib import Path

import pytest

from dsllm.config import RunConfig
from dsllm.errors import ConfigError

MINIMAL = "run_dir: runs/x\ndata: {path: data/x}\nmodel: {n_layer: 2, n_head: 2, n_embd: 32}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_replace_what_the_file_says(recipe):
    config = RunConfig.from_file(recipe, overrides=["model.n_layer=3", "train.lr=1e-3", "data.path=[a, b]"])
    assert (config.model.n_layer, config.train.lr, config.data.paths) == (3, 1e-3, ["a", "b"])


def test_the_resolved_configuration_reads_back_as_itself(recipe, tmp_path):
    config = RunConfig.from_file(recipe, overrides=["model.positions=learned"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(config.as_yaml())
    assert RunConfig.from_file(saved) == config


def test_a_key_reaches_into_a_section_that_a_saved_configuration_leaves_open(recipe, tmp_path):
    saved = tmp_path / "saved.yaml"
    saved.write_text(RunConfig.from_file(recipe).as_yaml())
    assert "growth: null" in saved.read_text()
    config = RunConfig.from_file(saved, overrides=["growth.operator=stack", "growth.lora.rank=3"])
    assert config.growth is not None
    assert (config.growth.operator, config.growth.lora.rank) == ("stack", 3)


def test_all_problems_come_at_once_with_thing_value_and_cure(recipe):
    wrong = ["model.n_embd=100", "model.n_head=6", "modle.x=1", "data.weights=[1, 2]"]
    wrong += ["train.step=5", "train.lr=-1", "train.global_batch_size=20"]
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_file(recipe, overrides=wrong)
    assert str(raised.value).split("\n  ") == [
        "configuration: 6 problems",
        "data.weights = [1, 2]: 2 weights for 1 folders in data.path; give each one",
        "model.n_embd = 100: not divisible by model.n_head = 6; take 96 or 108",
        "modle: no such key; did you mean model?",
        "train.lr = -1: input should be greater than 0",
        "train.step: no such key; did you mean train.steps?",
        "train.global_batch_size = 20: not a multiple of train.micro_batch_size = 8; take 16 or 24",
    ]


def test_a_bound_and_a_type_in_one_section_are_both_told(recipe):
    wrong = ["model.name=progressive", "growth.lora.rank=0", "growth.lora.alpha=[1]"]
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_file(recipe, overrides=wrong)
    said = str(raised.value)
    assert "growth.lora.rank = 0" in said and "growth.lora.alpha = [1]" in said


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.name=gpt3", "model.name = gpt3: no such model; did you mean gpt2?"),
        ("train.global_batch_size=20", "not a multiple of train.micro_batch_size = 8; take 16 or 24"),
        ("train.steps=many", "train.steps = 'many'"),
        ("train=3", "train = 3: a section of keys and values is needed here"),
        ("train.steps.x=3", "train.steps.x: train.steps is no section of keys here, but "),
        ("run_dir=", "run_dir"),
    ],
)
def test_a_wrong_value_is_named(recipe, override, message):
    overrides = ["train.steps=1", override] if override.startswith("train.steps.") else [override]
    with pytest.raises(ConfigError, match="problem") as raised:
        RunConfig.from_file(recipe, overrides=overrides)
    assert message in str(raised.value)


def test_options_of_a_policy_or_an_operator_that_is_a_plain_word_are_given_one_by_one(recipe):
    plain = ["model.name=progressive", "growth={operator: stack, policy: schedule}"]
    growth = RunConfig.from_file(recipe, [*plain, "growth.policy.at=[0.5]", "growth.operator.name=interpose"]).growth
    assert growth.policy == {"name": "schedule", "at": [0.5]} and growth.operator == {"name": "interpose"}
    growth = RunConfig.from_file(recipe, ["model.name=progressive", "growth={}", "growth.policy.at=[0.5]"]).growth
    assert growth.policy == {"name": "schedule", "at": [0.5]}


def test_what_hangs_on_a_wrong_value_is_not_guessed_at(recipe):
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_file(recipe, overrides=["train.micro_batch_size=0", "train.global_batch_size=20"])
    assert str(raised.value).split("\n  ") == [
        "configuration: 1 problem",
        "train.micro_batch_size = 0: input should be greater than 0",
    ]


@pytest.mark.parametrize("text", [None, "- a\n- b\n", "a: [", "\x00"])
def test_an_unreadable_file_is_named(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        RunConfig.from_file(path)


def test_what_is_missing_is_said(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {}\n")
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_file(path)
    assert "data.path: missing" in str(raised.value)
    assert "run_dir: missing" in str(raised.value)
