"""The convolution-attention model: stages, levels, caches, options and beginnings; its gates are beside."""

import math
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dsllm.config import RunConfig
from dsllm.models import skeleton
from dsllm.models.conv_attention import ConvAttention, ConvAttentionConfig
from dsllm.models.layers import Attention, rotary
from tests.models.conv_gates import CONFIGS, build, tokens

every_config = pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS.keys())
DEEP = CONFIGS["strides 4, 4, 4"]
WIDE_TAPS = CONFIGS["strides 2, 2, 2, twice the taps"]


def inputs_and_targets(T=70):
    ids = tokens(2, T + 1)
    return ids[:, :-1], ids[:, 1:]


def loss_and_gradients(model, T=70, **options):
    inputs, targets = inputs_and_targets(T)
    loss = model(inputs, targets=targets, **options).loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def by_the_stages(model, ids):
    """The logits by the stages of the design, its convolutions those of torch."""
    c, blocks = model.config, iter(model.blocks)

    def around(level, n):
        return rotary(torch.arange(n), c.widths[level] // c.n_head, torch.float64), None, None

    def through_blocks(x, level, n_blocks):
        for _ in range(n_blocks):
            x = next(blocks)(x, *around(level, x.shape[1]))
        return x

    def attended(x, half, level):
        return x + half.attention(half.norm_1(x), *around(level, x.shape[1]))

    x, skips = model.into(model.wte(ids)), []
    for level, (s, k, merge) in enumerate(zip(c.strides, c.taps or c.strides, model.merges, strict=True)):
        e = attended(through_blocks(x, level, c.encoder[level]), merge, level)
        kernel = merge.inner.weight.unflatten(1, (k, -1)).mT  # (hidden, d, k)
        inner = F.conv1d(F.pad(merge.norm_2(e).mT, (k - 1, 0)), kernel, merge.inner.bias, stride=s).mT
        shortcut = F.pad(e[:, ::s], (0, c.widths[level + 1] - c.widths[level]))
        skips.append(e)
        x = merge.out(F.gelu(inner, approximate="tanh")) + shortcut
    states = [through_blocks(x, len(c.strides), c.middle)]
    for level in reversed(range(len(c.strides))):
        s, spread, e = c.strides[level], model.spreads[level], skips[level]
        taken = (c.taps or c.strides)[level] // s
        kernel = spread.inner.weight.unflatten(0, (s, -1)).unflatten(2, (taken, -1)).flip(2)  # (s, hidden, k/s, d)
        kernel = kernel.permute(3, 1, 2, 0).flatten(2)  # (d, hidden, k): the tap of phase p and j is p + s·j
        h = spread.norm(F.pad(states[0], (0, 0, taken - 1, 0)))  # null vectors come before the first
        u = F.conv_transpose1d(h.mT, kernel, stride=s).mT[:, (taken - 1) * s :][:, : e.shape[1]]
        u = u + spread.inner.bias.view(s, -1)[torch.arange(e.shape[1]) % s]
        x = attended(e + spread.out(F.gelu(u, approximate="tanh")), spread, level)
        states.insert(0, through_blocks(x, level, c.decoder[level]))
    spans = accumulate(c.strides, lambda a, b: a * b, initial=1)
    held = [h[:, torch.arange(ids.shape[1]) // span] for h, span in zip(states, spans, strict=True)]
    read = range(len(states)) if c.read_out is None else c.read_out
    z = model.norm(sum(model.reads[str(level)].out(model.reads[str(level)].norm(held[level])) for level in read))
    return z @ model.wte.weight.T


@pytest.mark.parametrize("settings", [s for s in CONFIGS.values() if "windows" not in s])
def test_logits_are_those_of_the_stages_with_torchs_own_convolutions(settings):
    model, ids = build(**settings).double(), tokens(2, 131)
    torch.testing.assert_close(model(ids).logits, by_the_stages(model, ids), rtol=1e-11, atol=1e-11)


@every_config
def test_any_length_gives_each_level_a_vector_per_span(settings):
    model = build(**settings)
    for T in [*range(1, 30), 63, 64, 65, 200]:
        ids = tokens(2, T)
        assert model(ids).logits.shape == (2, T, model.vocab_size)
        for level, (span, width) in enumerate(zip(model.spans, settings["widths"], strict=True)):
            assert model.vectors(ids, level).shape == (2, -(-T // span), width)
        assert model.vectors(ids).equal(model.vectors(ids, len(model.spans) - 1))


def test_a_level_may_be_narrower_than_the_one_without():
    model = build(**{**CONFIGS["stride 3"], "widths": [16, 12]}).double()
    ids = tokens(2, 50)
    torch.testing.assert_close(model(ids).logits, by_the_stages(model, ids), rtol=1e-11, atol=1e-11)


# Caches and runs.


def test_a_generated_token_runs_only_the_levels_whose_clock_it_is():
    model, ran = build(**DEEP), []
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda *_: ran.append(1))
    cache, ids = model.new_cache(), tokens(2, 64)
    for t in range(64):
        model.hidden(ids[:, t : t + 1], cache=cache)
    assert len(ran) == 2 * 64 + 4 * 16 + 4 * 4 + 2 * 1  # 3.28 a token, where all would be 12


def test_the_faithful_preset_caches_504_values_a_token():
    config = RunConfig.from_file(Path("launch/recipes/origin_conv_attention.yaml"), ["model.vocab_size=61"]).model
    capacities = [layer.capacity for layer in skeleton(config).new_cache().layers]
    values = sum(2 * config.widths[level] * n for (_, level), n in zip(config.runs, capacities, strict=True))
    assert values / config.context == 504


def test_a_windowed_level_caches_its_window_alone():
    cache = build(**{**DEEP, "windows": [8, 3, None, None]}).new_cache()
    of_level = {
        level: layer.capacity for (_, level), layer in zip(build(**DEEP).config.runs, cache.layers, strict=True)
    }
    assert of_level == {0: 8, 1: 3, 2: 13, 3: 4}  # ⌈200 / 16⌉ and ⌈200 / 64⌉


@every_config
def test_what_a_level_holds_between_steps_does_not_keep_the_prompt(settings):
    cache = build(**settings).new_cache()
    build(**settings).hidden(tokens(2, 131), cache=cache)
    for level in cache.levels:
        for held in (level.inputs, level.outputs, level.spread.block, level.read.block):
            assert held is None or held.untyped_storage().nbytes() == held.nbytes


@every_config
def test_each_attention_layer_is_a_run_of_its_own(settings):
    model, order = build(**settings), []
    for module in (*model.blocks, *model.merges, *model.spreads):
        module.register_forward_hook(lambda module, *_: order.append(module))
    model(tokens(1, 9))
    assert len(order) == model.n_blocks == model.config.n_layer
    assert [module for module in order if module in set(model.blocks)] == list(model.blocks)


# Options.


@pytest.mark.parametrize("windows", [[70, 18, 5, 2], [200] * 4])
def test_windows_as_long_as_the_text_change_nothing(windows):
    ids = tokens(2, 70)
    windowed = build(**{**DEEP, "windows": windows}).double()
    torch.testing.assert_close(windowed(ids).logits, build(**DEEP).double()(ids).logits, rtol=1e-12, atol=1e-12)


def test_levels_that_are_not_read_have_no_read_out():
    assert [*build(**WIDE_TAPS).reads] == ["0", "2", "3"]
    model = build(**{**WIDE_TAPS, "read_out": [1]})
    assert [*model.reads] == ["1"]
    # Read from level 1 alone, both tokens of a pair are told the same.
    logits = model(tokens(2, 20)).logits
    assert logits[:, ::2].equal(logits[:, 1::2])


# Beginnings.


def of_coarse_levels(model):
    """Names of the parameters that only the levels beyond 0 use, but for the maps that begin at zero."""
    blocks = [level for kind, level in model.config.runs if kind == "block"]
    for name, _ in model.named_parameters():
        part, _, rest = name.partition(".")
        index = int(rest.split(".")[0]) if part in ("blocks", "merges", "spreads", "reads") else 0
        if part == "blocks":
            coarse = blocks[index] > 0
        elif part == "merges":
            coarse = index > 0 or ".norm_2." in name or ".inner." in name or name == "merges.0.out.weight"
        elif part == "spreads":
            coarse = index > 0 or ".norm." in name or ".inner." in name
        else:
            coarse = part == "reads" and ".norm." in name and index > 0
        if coarse:
            yield name


@pytest.mark.parametrize("settings", [DEEP, CONFIGS["stride 3, six taps"], CONFIGS["read from level 0 alone"]])
def test_at_first_the_coarse_levels_add_nothing_but_can_learn_to(settings):
    model = build(noise=0, **settings)
    inputs, targets = inputs_and_targets()
    with torch.no_grad():
        before = model(inputs).logits
        coarse = list(of_coarse_levels(model))
        for name in coarse:
            model.get_parameter(name).add_(torch.randn_like(model.get_parameter(name)))
        assert len(coarse) > 10 and model(inputs).logits.equal(before)
    model(inputs, targets=targets).loss.backward()
    assert model.spreads[0].out.weight.grad.any()
    assert all(read.out.weight.grad.any() for read in model.reads.values())


def test_initial_weights_are_those_of_the_design():
    settings = {"strides": [4, 2], "widths": [96, 128, 160], "encoder": [1, 0], "middle": 1, "decoder": [0, 1]}
    torch.manual_seed(0)
    model = ConvAttention(ConvAttentionConfig(n_head=2, n_embd=192, vocab_size=512, **settings))
    # Three blocks of two, four halves of one each, and what two Merges and two Spreads add.
    into_stream = 1 / math.sqrt(2 * (3 * 2 + 4 + 4))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert parameter.eq(float("norm" in name and name.endswith("weight"))).all(), name
            continue
        std = 0.577 / parameter.shape[1] ** 0.5
        if name in ("spreads.0.out.weight", "spreads.1.out.weight", "reads.1.out.weight", "reads.2.out.weight"):
            std = 0
        elif name == "into.out.weight":
            std = 1 / parameter.shape[1] ** 0.5  # of unit variance, as what it reads is
        elif name == "wte.weight":
            std = 0.02 * (768 / 192) ** 0.5
        elif name.endswith(("attention.out.weight", "mlp.down.weight")) or name in (
            "merges.0.out.weight",
            "merges.1.out.weight",
        ):
            std *= into_stream
        assert parameter.std().item() == pytest.approx(std, rel=0.05), name


def test_an_untrained_model_knows_little_better_than_chance():
    inputs, targets = inputs_and_targets()
    loss = build(noise=0, **{**DEEP, "n_embd": 192})(inputs, targets=targets).loss
    assert loss.item() == pytest.approx(math.log(37), abs=0.25)


@every_config
def test_the_skeleton_has_the_same_parameters_without_memory(settings):
    model = build(**settings)
    bare = skeleton(model.config)
    assert not list(bare.buffers()) and all(parameter.is_meta for parameter in bare.parameters())
    assert [(n, p.shape) for n, p in bare.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]


@every_config
def test_each_parameter_has_an_initial_value_from_its_generator(settings):
    model, zero = build(**settings), []
    for name, parameter in model.named_parameters():
        values = []
        for seed in (1, 1, 2):
            tensor = torch.full_like(parameter, torch.nan)
            with torch.no_grad():
                model.initial(name, tensor, torch.Generator().manual_seed(seed))
            values.append(tensor)
        zero += [name] if parameter.dim() > 1 and not values[0].any() else []
        assert values[0].isfinite().all() and values[0].equal(values[1]), name
        assert values[0].equal(values[2]) == (parameter.dim() == 1 or name in zero), name
    coarse = [name for name in model.reads if name != "0"]
    expected = {f"spreads.{level}.out.weight" for level in range(len(model.spreads))}
    assert set(zero) == expected | {f"reads.{level}.out.weight" for level in coarse}


# What training and packing ask of every model.


@every_config
def test_recomputed_activations_give_the_same_loss_and_gradients(settings):
    model, runs = build(**settings), []
    for module in (*model.blocks, *model.merges, *model.spreads):
        module.register_forward_pre_hook(lambda *_: runs.append(1))
    documents = torch.tensor([5] * 33 + [2] * 37).expand(2, -1)
    for options in ({}, {"document_ids": documents}):
        model.checkpoint_activations("none")
        expected = loss_and_gradients(model, **options)
        for policy in ("all", 2, [0, model.n_blocks - 1]):
            model.checkpoint_activations(policy)
            runs.clear()
            assert all(a.equal(b) for a, b in zip(loss_and_gradients(model, **options), expected, strict=True))
            assert len(runs) > model.n_blocks


def test_torch_compile_takes_it_whole_with_documents_and_recomputed_levels_at_any_length():
    torch.compiler.reset()
    model = build(**CONFIGS["stride 3, six taps"])
    model.checkpoint_activations([0, 2])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    documents = torch.tensor([5] * 10 + [2] * 12).expand(2, -1)
    for T, options in ((22, {"document_ids": documents}), (37, {})):
        expected = loss_and_gradients(model, T, **options)
        torch.testing.assert_close(loss_and_gradients(compiled, T, **options), expected)


@every_config
def test_two_passes_are_bit_equal_and_every_parameter_moves(settings):
    first, second = (loss_and_gradients(build(**settings), 131) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert all(gradient.any() for gradient in first)


@every_config
def test_every_module_registers_what_it_computes_with(settings):
    """ZeRO-3 gathers a module's own parameters when the module runs, and no others."""
    model, ran = build(**settings), set()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: ran.update(module.parameters(recurse=False)))
    inputs, targets = inputs_and_targets()
    model(inputs, targets=targets)
    assert ran == set(model.parameters())


@every_config
def test_bf16_is_near_fp32_also_under_autocast(settings):
    model = build(**settings)
    inputs, targets = inputs_and_targets()
    exact = model(inputs, targets=targets).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(inputs, targets=targets).loss
    half = model.bfloat16()(inputs, targets=targets).loss
    half.backward()
    assert mixed.dtype == half.dtype == torch.float32
    assert mixed.item() == pytest.approx(exact, rel=0.02) and half.item() == pytest.approx(exact, rel=0.02)
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in model.parameters())


@every_config
def test_a_document_that_begins_at_a_stride_product_is_as_if_alone(settings):
    model, span = build(**settings).double(), build(**settings).spans[-1]
    ids, begin = tokens(2, span + 70), span
    documents = torch.where(torch.arange(span + 70) < begin, 5, 2).expand(2, -1)
    logits = model(ids, document_ids=documents).logits
    for part in (slice(begin), slice(begin, None)):  # rotary angles are fp32, and those of one document stand elsewhere
        torch.testing.assert_close(logits[:, part], model(ids[:, part]).logits, rtol=1e-5, atol=1e-6)


@every_config
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"seed": 5}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 6}],
    ids=["greedy", "sampled", "narrowed"],
)
def test_the_cache_changes_no_token_even_past_the_context(settings, options):
    model = build(**{**settings, "context": 30})
    for prompt in (1, 13, 30, 31):
        cached = model.generate(tokens(2, prompt), 40, **options)
        assert cached[:, :prompt].equal(tokens(2, prompt))
        assert model.generate(tokens(2, prompt), 40, use_cache=False, **options).equal(cached)
