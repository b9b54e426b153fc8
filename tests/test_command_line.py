"""The command line: a recipe, any key of the configuration, and the two words that are no keys."""

from pathlib import Path

import pytest

from dsllm.command_line import CommandLine, named_path, parse, positive, yaml_value
from dsllm.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("run_dir: runs/x\ndata: {path: data/x}\nmodel: {n_layer: 2, n_head: 2, n_embd: 32}\n")
    return str(path)


def test_values_follow_with_a_space_or_an_equals_sign(recipe):
    arguments = parse(["--local_rank=1", "--config", recipe, "--train.steps", "7", "--model.n_layer=3"], "")
    assert (arguments.config.train.steps, arguments.config.model.n_layer, arguments.fresh) == (7, 3, False)


def test_negative_numbers_and_lists_are_values(recipe):
    arguments = parse(["--config", recipe, "--data.path", "[a, b]", "--fresh"], "")
    assert arguments.config.data.paths == ["a", "b"] and arguments.fresh
    with pytest.raises(ConfigError, match=r"train\.lr = -1"):
        parse(["--config", recipe, "--train.lr", "-1"], "")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config", "{}", "steps"], "'steps': an option was expected"),
        (["--config", "{}", "--train.steps"], "--train.steps: a value must follow it"),
        ([], "--config: missing"),
        (["--config", "{}", "--train.stepps", "3"], "did you mean train.steps?"),
    ],
)
def test_a_wrong_word_is_named(recipe, words, message):
    with pytest.raises(ConfigError) as raised:
        parse([word.format(recipe) for word in words], "")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--jobs", "0"], "argument --jobs: 0: take a whole number from 1"),
        (["--jobs", "two"], "argument --jobs: two: take a whole number from 1"),
        (["--job", "2"], "unrecognized arguments: --job 2"),
        (["--out", ""], "argument --out: empty; name a path"),
        (["--value", "[1"], "argument --value: [1: no YAML value; quote it"),
    ],
)
def test_a_script_says_what_is_wrong_in_one_line(words, message, capsys):
    command = CommandLine("What it does.")
    command.add_argument("--jobs", type=positive)
    command.add_argument("--out", type=named_path)
    command.add_argument("--value", type=yaml_value)
    with pytest.raises(SystemExit) as ended:
        command.parse_args(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}; see --help\n"


def test_help_documents_every_key(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], "usage")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--train.schedule  (cosine | wsd; cosine)" in text
    assert "--train.test_samples  (int | null; null)" in text
    assert "--data.path  (str | [str, ...]; required)" in text
    assert "--run_dir  (path; required)" in text and "--init_from  (str | null; null)" in text
    lines = text.splitlines()
    documented = [lines[i + 1].strip() for i, line in enumerate(lines) if line.startswith("  --")]
    assert len(documented) > 30 and all(documented)
