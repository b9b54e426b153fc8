"""A study file: what each run is, how long it is at a budget, and what is refused before anything is trained."""

from pathlib import Path

import pytest
import yaml

from dsllm.comparison.study import Study, with_steps
from dsllm.errors import ConfigError
from dsllm.growth.forecast import forecast_flops
from dsllm.models import skeleton

TRAIN = {"steps": 4, "eval_every": 2, "checkpoint_every": 2, "ds_config": "ds_configs/zero0.json"}
GROWS = {"model": {"name": "progressive", "n_layer": 1}, "growth": {"preset": "no_diverge", "policy": "schedule"}}


def written(path, recipe, **values):
    study = {"base": str(recipe), "set": {"train": TRAIN}, "seeds": [1, 2], **values}
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def test_flops_give_each_arm_its_steps(recipe, tmp_path):
    arms = {"small": {"model": {"n_layer": 1}}, "large": {"model": {"n_layer": 8}}, "grown": GROWS}
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms=arms, flops=1e9))
    configs = {arm: with_steps(study.config(arm, 1, None, tmp_path / arm), 1e9) for arm in arms}
    assert configs["small"].train.steps > 1.5 * configs["large"].train.steps > 0
    for arm in ("small", "large"):
        model = configs[arm].model.model_copy(update={"vocab_size": 320})
        spent = configs[arm].train.steps * 8 * 32 * skeleton(model).flops_per_token(32)
        assert spent == pytest.approx(1e9, rel=0.05)
    grown = configs["grown"]
    model = grown.model.model_copy(update={"vocab_size": 320})
    assert forecast_flops(model, grown.growth, 8 * 32, grown.train.steps) == pytest.approx(1e9, rel=0.05)
    with pytest.raises(ConfigError, match="not one step"):
        with_steps(study.config("small", 1, None, tmp_path / "x"), 10.0)


def test_without_flops_a_run_has_its_own_steps(recipe, tmp_path):
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"a": {}}))
    assert study.budgets("a") == [None] and with_steps(study.config("a", 1, None, tmp_path), None).train.steps == 4


def test_an_arm_of_another_model_has_the_keys_that_this_model_knows(recipe, tmp_path):
    conv = {"name": "conv_attention", "strides": [2], "widths": [8, 16], "encoder": [0], "decoder": [0], "middle": 1}
    arms = {"conv": {"model": {**conv, "n_layer": 3}}}
    base = {"set": {"model": {"positions": "learned", "n_head": 4}}}
    model = Study.read(written(tmp_path / "s.yaml", recipe, arms=arms, **base)).config("conv", 1, None, tmp_path).model
    assert (model.n_head, model.context, model.widths) == (4, 32, (8, 16))
    wrong = {"conv": {"model": {**conv, "n_layer": 3, "positions": "learned"}}}
    with pytest.raises(ConfigError, match=r"arms\.conv: model\.positions: no such key"):
        Study.read(written(tmp_path / "t.yaml", recipe, arms=wrong))


def test_some_arms_have_further_budgets_than_all_share(recipe, tmp_path):
    arms, further = {"a": {}, "b": {"model": {"n_layer": 1}}}, {"a": [4e9, 1e9]}
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms=arms, flops=[2e9, 1e9], further=further))
    assert (study.budgets("a"), study.budgets("b"), study.shared_budget) == ([1e9, 2e9, 4e9], [1e9, 2e9], 2e9)
    assert study.tuning_budget == 2e9 and study.model_copy(update={"tuned_at": 1e9}).tuning_budget == 1e9


def test_a_seed_may_have_data_of_its_own(recipe, tmp_path):
    values = {"arms": {"a": {"data": {"path": "data/table_{seed}"}}}, "prepare": ["reasoning --seed {seed}"]}
    study = Study.read(written(tmp_path / "s.yaml", recipe, **values))
    assert study.data_by_seed and study.config("a", 7, None, tmp_path).data.path == "data/table_7"
    assert study.preparations(7) == ["reasoning --seed 7"]
    assert not Study.read(written(tmp_path / "t.yaml", recipe, arms={"a": {}})).data_by_seed


@pytest.mark.parametrize("path", sorted(Path("launch/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_that_ship_are_right(path):
    study = Study.read(path)
    assert len(study.arms) >= 4 and study.prepare and study.flops is not None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"arms": {}}, "arms"),
        ({"arms": {"a": {}}, "sedes": [1]}, "sedes: no such key; did you mean seeds?"),
        (
            {"arms": {"a": {"model": {"n_layers": 2}}}},
            "arms.a: model.n_layers: no such key; did you mean model.n_layer?",
        ),
        ({"arms": {"a/b": {}}}, "arms.a/b: a name of letters"),
        ({"arms": {"a": {"model": {"name": "gpt3"}}}}, "arms.a:"),
        ({"arms": {"a": {"growth": {"operator": "graft"}}}}, "arms.a: growth.operator = graft: no such operator"),
        ({"arms": {"a": {}}, "flops": []}, "flops: no budget"),
        ({"arms": {"a": None}}, "arms.a = None: keys and values are needed here, or {} for none"),
        ({"arms": {"a": {}}, "flops": 0}, "1 problem\n  {path}: flops = 0: input should be greater than 0"),
        ({"arms": {"a": {}}, "seeds": [1, 2, 1]}, "seeds: 1 twice; take one out"),
        ({"arms": {"a": {}}, "rates": [0.1, 0.1]}, "rates: 0.1 twice"),
        ({"arms": {"a": {}, "b": {"model": {"n_layer": 2}}}}, "arms.b: the same as a; remove one of them"),
        ({"arms": {"a": {}}, "base": "launch/recipes/smal.yaml"}, "did you mean launch/recipes/small.yaml?"),
        ({"arms": {"a": {}}, "flops": 1e9, "further": {"b": [2e9]}}, "further.b: no such arm; the arms are a"),
        ({"arms": {"a": {}}, "further": {"a": [2e9]}}, "further: budgets besides none"),
        ({"arms": {"a": {}}, "tuned_at": 2e9}, "tuned_at: a budget, but the runs have none"),
    ],
)
def test_a_wrong_study_is_told_before_anything_is_trained(values, words, recipe, tmp_path):
    path = written(tmp_path / "s.yaml", recipe, **values)
    with pytest.raises(ConfigError) as refused:
        Study.read(path)
    assert words.replace("{path}", str(path)) in str(refused.value)
