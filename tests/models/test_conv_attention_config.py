"""What the sizes of a convolution-attention model have to fit, and what the presets come to."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsllm.config import RunConfig
from dsllm.errors import ConfigError
from dsllm.models import build_model, skeleton
from dsllm.models.conv_attention import ConvAttention, ConvAttentionConfig
from dsllm.models.gpt2 import GPT2Config
from dsllm.section import validate
from tests.models.conv_gates import BASE, CONFIGS, build, tokens

DEEP = CONFIGS["strides 4, 4, 4"]
every_config = pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.mark.parametrize(
    "values, lines",
    [
        (
            {"widths": [48, 96, 190, 384]},
            ["widths = [48, 96, 190, 384]: level 2, 190 wide: no multiple of 2 · model.n_head = 12; take 180 or 192"],
        ),
        (
            {"widths": [6, 96, 192, 384]},
            ["widths = [6, 96, 192, 384]: level 0, 6 wide: no multiple of 2 · model.n_head = 12; take 12"],
        ),
        (
            {"widths": [18, 96, 192, 384]},  # heads of odd width 3
            ["widths = [18, 96, 192, 384]: level 0, 18 wide: no multiple of 2 · model.n_head = 12; take 12 or 24"],
        ),
        (
            {"taps": [4, 6, 5]},
            [
                "taps = [4, 6, 5]: 6 from level 1 on: no multiple of its stride 4; take 8",
                "taps = [4, 6, 5]: 5 from level 2 on: no multiple of its stride 4; take 8",
            ],
        ),
        ({"taps": [4, 4]}, ["taps = [4, 4]: 2 given; with 3 strides 3 are needed, one for each stride"]),
        ({"widths": [48]}, ["widths = [48]: 1 given; with 3 strides 4 are needed, one for each level"]),
        (
            {"encoder": [1], "decoder": [0, 0, 0, 0]},
            [
                "encoder = [1]: 1 given; with 3 strides 3 are needed, one for each level but the innermost",
                "decoder = [0, 0, 0, 0]: 4 given; with 3 strides 3 are needed, one for each level but the innermost",
            ],
        ),
        ({"windows": [8]}, ["windows = [8]: 1 given; with 3 strides 4 are needed, one for each level"]),
        ({"n_layer": 5}, ["n_layer = 5: the depths give 12 attention layers; take that, or leave it out"]),
        ({"read_out": [4]}, ["read_out = [4]: no level 4; with 3 strides there are 0 to 3"]),
        ({"read_out": []}, ["read_out = []: name each level that is read once, at least one"]),
        ({"read_out": [0, 0]}, ["read_out = [0, 0]: name each level that is read once, at least one"]),
        ({"strides": [0, 4, 4]}, ["strides = 0: input should be greater than 0"]),
        ({"stride": [4]}, ["stride: no such key; did you mean model.strides?"]),
        (
            {"strides": [], "widths": [48], "encoder": [], "middle": 0, "decoder": []},
            ["middle = 0: without strides these are all the blocks; take at least 1"],
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_a_cure(values, lines):
    assert validate(ConvAttentionConfig, values, "model") == (None, [f"model.{line}" for line in lines])


def test_a_context_of_one_stride_product_works_and_is_remarked():
    config = ConvAttentionConfig(**{**BASE, **DEEP, "context": 64})
    assert ConvAttention(config)(tokens(1, 64)).logits.isfinite().all()
    (remark,) = config.remarks()
    assert remark.startswith("model.context = 64: not longer than one product of the strides, 64")
    assert not list(ConvAttentionConfig(**{**BASE, **DEEP, "context": 65}).remarks())


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_section_reads_back_as_it_was(settings):
    config = build(**settings).config
    assert ConvAttentionConfig.model_validate_json(config.model_dump_json()) == config
    assert type(build_model(config)) is ConvAttention


def preset(name, *overrides):
    path = Path("launch/recipes") / f"{name}.yaml"
    return RunConfig.from_file(path, overrides=["model.vocab_size=50257", *overrides]).model


def whole(name):
    """The preset as the design has it: every level sees all of itself and is read."""
    return preset(name, "model.windows=null", "model.read_out=null")


BASELINE = GPT2Config(n_layer=12, n_head=6, n_embd=192, context=4096, vocab_size=50_257)


@pytest.mark.parametrize(
    "config, parameters, without_embeddings, mega_flops",
    [
        (BASELINE, 15.0, 5.3, {256: 31.1, 1024: 34.6, 4096: 48.8}),
        # Estimated at 8.2 (5.8), which leaves out the second maps of the convolutions and the read-outs, 0.28.
        ("origin_conv_attention", 8.5, 6.1, {256: 5.4, 1024: 5.6, 4096: 6.4}),
        ("conv_equal_parameters", 15.8, 6.2, {256: 19.9, 1024: 20.1, 4096: 20.9}),
        ("conv_mid", 26.1, 16.4, {1024: 25.2, 4096: 29.3}),
        ("conv_equal_flops", 44.6, 35.0, {256: 31.4, 1024: 33.4, 4096: 41.5}),
    ],
)
def test_the_presets_have_the_sizes_and_costs_of_the_design(config, parameters, without_embeddings, mega_flops):
    model = skeleton(whole(config) if isinstance(config, str) else config)
    assert model.count_parameters() / 1e6 == pytest.approx(parameters, abs=0.16)
    assert model.count_parameters(embeddings=False) / 1e6 == pytest.approx(without_embeddings, abs=0.11)
    for context, expected in mega_flops.items():
        # The design counts causal attention: on average a token sees half the context.
        assert model.forward_flops_per_token(context // 2) / 1e6 == pytest.approx(expected, abs=0.11)


def test_presets_recompute_levels_0_and_1_alone():
    for name in ("origin_conv_attention", "conv_equal_parameters", "conv_mid", "conv_equal_flops"):
        assert RunConfig.from_file(Path("launch/recipes") / f"{name}.yaml").train.activation_checkpointing == {
            "levels": [0, 1]
        }


@every_config
def test_activations_can_be_recomputed_by_level(settings):
    model, runs = build(**settings), []
    for module in (*model.blocks, *model.merges, *model.spreads):
        module.register_forward_pre_hook(lambda module, _: runs.append(module))
    for chosen in [[], *([level] for level in range(len(model.spans)))]:
        model.checkpoint_activations({"levels": chosen})
        runs.clear()
        model(tokens(1, 9), targets=tokens(1, 9)).loss.backward()
        again = [module for module in set(runs) if runs.count(module) == 2]
        assert len(again) == sum(level in chosen for _, level in model.config.runs)


def test_a_level_that_the_model_has_not_cannot_be_recomputed():
    with pytest.raises(ConfigError, match="no level 2; the model has 0 to 1"):
        build(**CONFIGS["stride 3"]).checkpoint_activations({"levels": [0, 2]})


@pytest.mark.parametrize("depths", [{"middle": math.inf}, {"encoder": [math.inf, 1]}])
def test_an_endless_depth_is_a_problem_of_the_depth(depths):
    _, problems = validate(ConvAttentionConfig, {"vocab_size": 64, **depths}, "model")
    assert problems and all(key in problem for key, problem in zip(depths, problems, strict=False))


@pytest.mark.parametrize("settings", [s for s in CONFIGS.values() if "windows" not in s])
def test_the_flops_formula_is_what_a_forward_pass_counts(settings):
    model = build(**settings)
    T = 2 * model.spans[-1]
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(tokens(2, T))
    assert model.forward_flops_per_token(T) == round(counted.get_total_flops() / (2 * T))


def test_a_window_saves_the_attention_beyond_it():
    unbounded, windowed = build(**DEEP), build(**{**DEEP, "windows": [16, 4, None, None]})
    saved = 2 * 4 * 12 * (128 - 16) + 4 * 4 * 16 * (32 - 4) / 4  # per token: layers · 4 d (n - window) / span
    assert unbounded.forward_flops_per_token(128) - windowed.forward_flops_per_token(128) == saved
