"""Configuration files: what is in them, or what is wrong with them."""

import pytest

from dsllm.errors import ConfigError
from dsllm.yaml_file import read_yaml


def test_values_come_as_they_stand_with_anchors_and_merges(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {lr: 1.0e-3, steps: 5}\nmine: {<<: *base, steps: 7}\n")
    assert read_yaml(path)["mine"] == {"lr": 1e-3, "steps": 7}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arms:\n  a: {}\n  b: {}\n  a: {model: {}}\n", "a.yaml, line 4: a stands twice; take one of the two out"),
        ("train: {lr: 1, lr: 2}\n", "a.yaml, line 1: lr stands twice"),
        ("? {a: 1}\n: 2\n", "a.yaml: not YAML"),
        ("", "a.yaml: holds no sections; see launch/studies/ for the form"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text, words, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_yaml(path, "launch/studies/")
    assert words in str(refused.value)


def test_a_folder_or_a_name_that_is_nearly_one_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read .*; give a file as in launch/recipes/"):
        read_yaml(tmp_path)
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match=r"did you mean .*mine\.yaml"):
        read_yaml(tmp_path / "mien.yaml")
