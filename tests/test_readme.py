"""What the README and docs/extending.md show in Python does what they say, not only runs (tests/test_docs.py)."""

import re
import sys

from dsllm.training.checkpoints import complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.forked import forked
from tests.launching import REPOSITORY, run

BLOCKS = [
    block
    for page in ("README.md", "docs/extending.md")
    for block in re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.DOTALL)
]


def test_the_training_algorithm_of_ones_own_trains(recipe, trained_run, tmp_path):
    script = tmp_path / "smooth.py"
    script.write_text(next(block for block in BLOCKS if "class LabelSmoothing" in block))
    assert len(script.read_text().splitlines()) < 30
    run([sys.executable, script, "--config", recipe, "--run_dir", tmp_path / "run"])
    smooth, plain = (
        [r["loss"] for r in read_metrics(d) if r["kind"] == "train"] for d in (tmp_path / "run", trained_run)
    )
    assert len(complete_checkpoints(tmp_path / "run")) == 2
    assert smooth[-1] < smooth[0] - 0.5
    assert smooth[-1] > plain[-1] + 0.05  # the smoothed loss cannot fall as low


def test_an_algorithm_that_does_not_grow_the_model_refuses_a_growth_section(growing, tmp_path):
    (tmp_path / "smooth.py").write_text(next(block for block in BLOCKS if "class LabelSmoothing" in block))
    said = forked([tmp_path / "smooth.py", "--config", growing, "--run_dir", tmp_path / "run"], expect=2)
    assert "growth: LabelSmoothing trains the model as it is; derive it from ProgressiveTrainer first" in said
    assert not (tmp_path / "run").exists()


def test_a_configuration_a_model_and_a_trained_model_in_python(trained_run, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    names: dict = {}
    exec(next(block for block in BLOCKS if "load_model" in block).replace("runs/demo_gpt2", str(trained_run)), names)
    assert names["model"].config.n_layer == 2
    assert not names["trained"].training
    assert names["trained"].config.n_embd == 32


def test_an_operator_and_a_policy_of_ones_own_grow_a_run(recipe, tmp_path, monkeypatch):
    (tmp_path / "growing.py").write_text(next(block for block in BLOCKS if "def mirror" in block))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    growth = {
        "operator": "growing:mirror",
        "policy.name": "growing:impatient",
        "policy.every": 2,
        "preset": "no_diverge",
    }
    options = [f"--growth.{key}={value}" for key, value in growth.items()]
    run_dir = tmp_path / "run"
    run(
        [
            sys.executable,
            "launch/train.py",
            "--config",
            recipe,
            "--run_dir",
            run_dir,
            "--model.name=progressive",
            *options,
        ]
    )
    (receipt,) = [record for record in read_metrics(run_dir) if record["kind"] == "growth"]
    assert (receipt["operator"], receipt["step"], receipt["problems"]) == ("mirror", 2, [])
    assert (receipt["layers_before"], receipt["layers_after"]) == (2, 4)
