"""The convolution-attention model cannot see the future: gates G0 to G8, and mutants that must not pass."""

import shutil
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from tests.models import conv_gates as gates
from tests.models.conv_gates import CONFIGS, build, leaking
from tests.models.conv_reach import gate_0, taken_up

every_config = pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS.keys())
LEAKABLE = {name: settings for name, settings in CONFIGS.items() if settings["strides"]}
every_leak = pytest.mark.parametrize("settings", LEAKABLE.values(), ids=LEAKABLE.keys())


def section(settings):
    return SimpleNamespace(**{"taps": None, "windows": None, "read_out": None, **settings})


# G0


@every_config
def test_g0_the_index_formulas_reach_no_later_token(settings):
    for T in (1, 2, 63, 64, 65, 131):
        gate_0(section(settings), T)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_g0_holds_for_any_strides_and_taps_where_attention_hides_nothing(levels):
    for strides, parts in product(product((2, 3, 5), repeat=levels), (1, 2)):
        depths = {"encoder": [1] * levels, "middle": 1, "decoder": [1] * levels}
        sizes = {"strides": strides, "taps": [parts * s for s in strides], "windows": [1] * (levels + 1)}
        gate_0(section({**sizes, **depths}), 71)


MUTANTS = {
    "windows unshifted": {"down": lambda g, s, k: range(g * s + s - k, g * s + s)},
    "windows centred": {"down": lambda g, s, k: range(g * s - k // 2, g * s - k // 2 + k)},
    "transposed convolution cropped on the left": {"up": lambda i, s, k: taken_up(i + 1, s, k)},
    "read-out rounded up": {"read": lambda t, span: -(-t // span)},
}


@pytest.mark.parametrize("formulas", MUTANTS.values(), ids=MUTANTS.keys())
@every_leak
def test_g0_the_formulas_of_known_leaks_do(settings, formulas):
    with pytest.raises(AssertionError, match=r"past its clock|reached logits before"):
        gate_0(section({**settings, "read_out": None}), 131, **formulas)


# G1


@every_config
@pytest.mark.parametrize("T", [70, 131])
def test_g1_logits_and_vectors_feel_exactly_the_tokens_of_the_formulas(settings, T):
    gates.gate_1(build(**settings), T)


@pytest.mark.parametrize("read_out", [None, [0], [1], [3]])
@pytest.mark.parametrize("name", ["strides 4, 4, 4", "strides 2, 2, 2, twice the taps"])
def test_g1_holds_where_attention_hides_nothing(name, read_out):
    """Windows this short leave the reach of the convolutions to be seen."""
    gates.gate_1(build(**{**CONFIGS[name], "windows": [1, 1, 2, 1], "read_out": read_out}), 70)


# G2


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_g2_a_changed_token_changes_no_bit_before_it(settings, dtype):
    gates.gate_2(build(**settings).to(dtype), 131)


def test_g2_traced_whole_too():
    torch.compiler.reset()
    model = build(**CONFIGS["strides 2 and 3, windows"])
    gates.gate_2(model, 67, range(0, 67, 6), torch.compile(model, fullgraph=True, backend="aot_eager"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_g2_compiled_too():
    torch.compiler.reset()
    model = build(**CONFIGS["stride 3"])
    gates.gate_2(model, 67, range(0, 67, 6), torch.compile(model, fullgraph=True))


# G3


@every_config
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_g3_a_text_cut_short_has_the_same_logits(settings, dtype, tolerance):
    gates.gate_3(build(**settings).to(dtype), range(1, 131), tolerance)


# G4


@every_config
def test_g4_a_prompt_may_end_at_any_phase(settings):
    model = build(**settings)
    span = model.spans[-1]
    # On from the prompt one by one until every level has run again.
    gates.gate_4(model, 2 * span + 4, [[n, *[1] * (-n % span + 2)] for n in range(1, span + 3)])


@every_config
def test_g4_tokens_may_come_one_by_one_or_in_any_pieces(settings):
    lengths = torch.randint(1, 9, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    ragged = lengths[: next(i for i in range(100) if sum(lengths[:i]) > 120)]
    gates.gate_4(build(**settings), 150, [[1] * 131, [70, *[1] * 61], [5] * 26, [64, 1, 63, 2, 1], ragged])


@every_config
def test_g4_greedy_text_is_the_same_without_the_cache(settings):
    model = build(**{**settings, "context": 48}).double()
    for prompt in (1, 7, 48):
        ids = gates.tokens(3, prompt)
        cached = model.generate(ids, 60, temperature=0)
        assert model.generate(ids, 60, temperature=0, use_cache=False).equal(cached)
        assert model(cached[:, :47]).logits.argmax(-1)[:, prompt - 1 : 47].equal(cached[:, prompt:48])


# G5

NOISE = {"strides": [2], "widths": [32, 32], "encoder": [0], "middle": 1, "decoder": [0]}
NOISE |= {"n_embd": 32, "vocab_size": 32, "context": 64}


def test_g5_fresh_random_tokens_are_learnt_to_their_entropy_and_not_below():
    gates.gate_5(build(noise=0, **NOISE), steps=100, lr=1e-2)


# G6


@every_leak
def test_g6_the_mutant_fails_g1(settings):
    with pytest.raises(AssertionError, match="feel a later token"):
        gates.gate_1(leaking(build(**settings)), 70)


@every_leak
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_g6_the_mutant_fails_g2(settings, dtype):
    with pytest.raises(AssertionError, match="changes logits before it"):
        gates.gate_2(leaking(build(**settings)).to(dtype), 70)


@every_leak
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_g6_the_mutant_fails_g3(settings, dtype, tolerance):
    with pytest.raises(AssertionError, match="cut at"):
        gates.gate_3(leaking(build(**settings)).to(dtype), range(1, 131), tolerance)


@every_leak
def test_g6_the_mutant_fails_g4(settings):
    with pytest.raises(AssertionError, match="in pieces of"):
        gates.gate_4(leaking(build(**settings)), 70, [[1] * 70])


def test_g6_the_mutant_fails_g5():
    with pytest.raises(AssertionError, match="nats below the entropy"):
        gates.gate_5(leaking(build(noise=0, **NOISE)), steps=100, lr=1e-2)


# G7

TEXT = {"strides": [4], "widths": [32, 48], "encoder": [0], "middle": 1, "decoder": [1]}
TEXT |= {"n_embd": 32, "vocab_size": 256, "context": 128}


def test_g7_on_text_no_phase_knows_more_than_another():
    gates.gate_7(build(noise=0, **TEXT), steps=200, lr=5e-3)


def test_g7_the_mutant_knows_more_at_some_phases():
    with pytest.raises(AssertionError, match="times the best's"):
        gates.gate_7(leaking(build(noise=0, **TEXT)), steps=200, lr=5e-3)


# G8


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_g8_a_document_changes_no_bit_of_another(settings, dtype):
    gates.gate_8(build(**settings).to(dtype), 131)


@every_config
def test_g8_no_gradient_leaves_a_document(settings):
    gates.gate_8_gradients(build(**settings), 70)


@every_config
def test_g8_fails_where_documents_are_not_told_apart(settings):
    model = build(**settings)
    hidden = model.hidden
    model.hidden = lambda ids, document_ids=None, cache=None: hidden(ids, None, cache)
    with pytest.raises(AssertionError, match="another document is felt"):
        gates.gate_8(model, 70)


@pytest.mark.parametrize("part", ["merge", "spread", "read-out"])
@pytest.mark.parametrize("name", ["strides 4, 4, 4", "strides 2, 2, 2, twice the taps"])
def test_g8_fails_where_one_part_does_not_tell_documents_apart(name, part):
    model = build(**CONFIGS[name])
    if part == "merge":
        model.merges[0].__class__ = gates.MergesDocuments
    elif part == "spread":
        model.spreads[1].__class__ = gates.SpreadsDocuments
    else:
        model.__class__ = gates.ReadsDocuments
    with pytest.raises(AssertionError, match="another document is felt"):
        gates.gate_8(model, 70)
