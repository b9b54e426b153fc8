"""launch/compare.py on folders of runs and files of records."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.launching import python, train


def test_the_command_writes_page_markdown_figures_and_pictures(trained_run, second_run, tmp_path):
    out = tmp_path / "report"
    said = python("launch/compare.py", trained_run, second_run, "--out", out, "--records", tmp_path / "kept")
    assert "ms per token decoded" in said and "±" in said and str(out / "report.html") in said
    results = json.loads((out / "results.json").read_text())
    (runs,) = results.values()
    assert [run["seed"] for run in runs] == [7, 1337]
    assert runs[0]["decode_ms"] > 0 and runs[1]["decode_ms"] is None and runs[0]["inference_on"]
    assert (out / "loss_by_flops.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "report.md").read_text()
    assert "| arm | o" in text and "![" in text and "one standard deviation over seeds" in text
    content = (out / "report.html").read_text()
    assert "<img" in content and not re.search(r'(src|href)="(?!data:)', content) and "url(" not in content

    kept = sorted((tmp_path / "kept").iterdir())
    again = python("launch/compare.py", *kept, "--out", tmp_path / "again", "--no_inference")
    assert json.loads((tmp_path / "again" / "results.json").read_text()).keys() == results.keys()
    assert "One seed only" not in again


@pytest.mark.slow
def test_models_that_merge_tokens_are_shown_by_phase_beside_those_that_do_not(recipe, trained_run, tmp_path):
    merging = tmp_path / "merging.yaml"
    values = yaml.safe_load(recipe.read_text())
    model = {"name": "conv_attention", "n_head": 2, "n_embd": 16, "context": 32, "strides": [4], "widths": [16, 32]}
    values["model"] = {**model, "encoder": [0], "middle": 1, "decoder": [0]}
    merging.write_text(yaml.safe_dump(values))
    train(merging, tmp_path / "merging", train__ds_config="ds_configs/zero0.json")
    python("launch/compare.py", trained_run, tmp_path / "merging", "--out", tmp_path / "report")
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    for runs in results.values():
        losses = runs[0]["phase_losses"]
        assert len(losses) == 4 and sum(losses) / 4 == pytest.approx(runs[0]["test_loss"], rel=0.05)
    assert (tmp_path / "report" / "loss_by_phase.png").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.yaml").unlink(), "no run, config.yaml is not in it"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "holds no complete checkpoint"),
        (lambda run: _drop(run, "test"), "not finished, there is no evaluation on test at step 8"),
        (lambda run: (_drop(run, "test"), shutil.rmtree(run / "checkpoints")), "not finished, there is no evaluation"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_words(spoil, words, trained_run, tmp_path):
    run = tmp_path / "spoilt"
    shutil.copytree(trained_run, run)
    spoil(run)
    said = python("launch/compare.py", trained_run, run, "--out", tmp_path / "report", expect=2)
    assert f"error: {run}: {words}" in said and "Traceback" not in said
    assert not (tmp_path / "report").exists()


def _drop(run: Path, split: str) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line).get("split") != split))


def test_records_of_several_folders_with_one_name_are_all_kept(trained_run, second_run, tmp_path):
    for arm, run in (("a", trained_run), ("b", second_run)):
        shutil.copytree(run, tmp_path / arm / "seed1")
    runs = [tmp_path / arm / "seed1" for arm in "ab"]
    python("launch/compare.py", *runs, "--out", tmp_path / "out", "--records", tmp_path / "kept", "--no_inference")
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == ["a_seed1.json", "b_seed1.json"]


def test_a_file_that_is_no_record_is_named(trained_run, tmp_path):
    (tmp_path / "a.json").write_text('{"name": 3}')
    said = python("launch/compare.py", tmp_path / "a.json", "--out", tmp_path / "report", expect=2)
    assert "a.json: no record of a run (name:" in said and "Traceback" not in said
    (tmp_path / "a.json").write_text("# Notes")
    said = python("launch/compare.py", tmp_path / "a.json", "--out", tmp_path / "report", expect=2)
    assert "a.json: no record of a run (Invalid JSON:" in said
    said = python("launch/compare.py", tmp_path, "--out", tmp_path / "report", expect=2)
    assert "config.yaml is not in it; give folders that launch/train.py wrote, or the files in it" in said
