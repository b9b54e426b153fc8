"""GPT-2 against transformers, its causality, its initial weights, its accounts."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsllm.errors import ConfigError
from dsllm.models import build_model
from dsllm.models.gpt2 import GPT2, GPT2Config
from dsllm.models.huggingface import from_huggingface, huggingface_config, to_huggingface
from dsllm.section import validate

both_positions = pytest.mark.parametrize("positions", ["rotary", "learned"])


def transformers_model(model):
    """The same function by transformers: its GPT-2 with learned positions, its GPT-NeoX with rotary ones."""
    learned = model.config.positions == "learned"
    of, make = (
        (transformers.GPT2Config, transformers.GPT2LMHeadModel)
        if learned
        else (transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM)
    )
    theirs = make(of(**huggingface_config(model.config))).eval()
    missing, unexpected = theirs.load_state_dict(to_huggingface(model.state_dict(), model.config), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight", "embed_out.weight"}  # tied
    theirs.tie_weights()
    return theirs


@both_positions
def test_logits_loss_and_gradients_are_those_of_transformers(small, ids, positions):
    ours = small(positions=positions)
    theirs = transformers_model(ours)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs).logits, theirs(inputs).logits, rtol=1e-5, atol=1e-5)
    loss = ours(inputs, targets=targets).loss
    reference = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)
    loss.backward()
    reference.backward()
    gradients = to_huggingface({n: p.grad for n, p in ours.named_parameters(remove_duplicate=False)}, ours.config)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@both_positions
def test_greedy_text_is_that_of_transformers(small, ids, positions):
    model = small(positions=positions)
    prompt = ids[:, :4]
    reference = transformers_model(model).generate(
        prompt, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert model.generate(prompt, 12, temperature=0).equal(reference)


@both_positions
def test_weights_come_back_from_transformers_as_they_were(small, positions):
    model = small(positions=positions)
    state = model.state_dict()
    back = from_huggingface(to_huggingface(state, model.config), model.config)
    assert back.keys() == state.keys() - {"head.weight"} and all(back[name].equal(state[name]) for name in back)


def test_windowed_weights_do_not_go_to_transformers(small):
    with pytest.raises(ConfigError, match=r"model.window = 4: .* train with model.window = null"):
        huggingface_config(small(positions="learned", window=4).config)


@both_positions
def test_no_logit_feels_a_later_token(small, ids, positions):
    model = small(positions=positions).double()
    inputs = ids[:1, :-1]
    embedded = model.wte(inputs).detach().requires_grad_()
    model.wte.register_forward_hook(lambda *_: embedded)
    logits = model(inputs).logits
    for t in range(16):
        (reach,) = torch.autograd.grad(logits[0, t].sin().sum(), embedded, retain_graph=True)
        felt = reach[0].abs().sum(-1)
        assert not felt[t + 1 :].any() and felt[: t + 1].all()


@both_positions
def test_changing_a_token_leaves_earlier_logits_bit_equal(small, ids, positions):
    model, inputs = small(positions=positions).eval(), ids[:1, :-1]
    before = model(inputs).logits
    for t in range(16):
        changed = inputs.clone()
        changed[0, t] = (changed[0, t] + 1) % 61
        after = model(changed).logits
        assert after[0, :t].equal(before[0, :t])
        assert not torch.isclose(after[0, t], before[0, t]).all()


@both_positions
def test_packed_documents_are_each_as_if_alone(small, ids, positions):
    model, lengths = small(positions=positions), (5, 1, 10)
    document_ids = torch.repeat_interleave(torch.tensor([4, 9, 2]), torch.tensor(lengths)).expand(2, -1)
    packed = model(ids[:, :-1], document_ids=document_ids).logits
    ends = [0, 5, 6, 16]
    for begin, end in pairwise(ends):
        torch.testing.assert_close(packed[:, begin:end], model(ids[:, begin:end]).logits, rtol=1e-5, atol=1e-5)


@both_positions
def test_one_document_is_the_same_as_none_marked(small, ids, positions):
    model, inputs = small(positions=positions), ids[:, :-1]
    one = model(inputs, document_ids=torch.full_like(inputs, 3)).logits
    torch.testing.assert_close(one, model(inputs).logits)


def test_initial_weights_are_the_published_ones():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=8, n_head=4, n_embd=128, context=256, vocab_size=512, positions="learned"))
    into_stream = 0.02 / math.sqrt(2 * 8)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert parameter.eq(1.0 if "norm" in name and name.endswith("weight") else 0.0).all(), name
            continue
        std = 0.01 if name == "wpe.weight" else into_stream if "out." in name or "down." in name else 0.02
        assert parameter.std().item() == pytest.approx(std, rel=0.05), name
        assert abs(parameter.mean().item()) < 0.05 * std, name


def test_the_seed_fixes_the_initial_weights():
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(build_model(GPT2Config(n_layer=3, n_head=2, n_embd=8, vocab_size=50)).state_dict())
    same = [all(states[0][name].equal(state[name]) for name in state) for state in states]
    assert same == [True, True, False]


def test_an_untrained_model_knows_no_better_than_chance(ids):
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=4, n_head=4, n_embd=64, context=16, vocab_size=61))
    assert model(ids[:, :-1], targets=ids[:, 1:]).loss.item() == pytest.approx(math.log(61), abs=0.1)


@both_positions
def test_the_flops_formula_is_what_a_forward_pass_counts(small, ids, positions):
    model, inputs = small(positions=positions), ids[:, :-1]
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(inputs)
    assert counted.get_total_flops() == inputs.numel() * model.forward_flops_per_token(16)


def test_training_counts_three_times_the_forward_pass_and_no_recomputation(small):
    model = small()
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    for policy in ("none", "all"):
        model.checkpoint_activations(policy)
        assert model.flops_per_token(16) == 6 * matrices + 12 * 3 * 32 * 16


def test_a_forward_and_backward_pass_counts_the_training_flops(small, ids):
    model, inputs = small(), ids[:, :-1]
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model(inputs, targets=ids[:, 1:]).loss.backward()
    assert counted.get_total_flops() == inputs.numel() * model.flops_per_token(16)


def test_the_baselines_parameters_are_counted_once():
    model = GPT2(GPT2Config(n_layer=12, n_head=6, n_embd=192, context=256, vocab_size=50_257, positions="learned"))
    assert model.wte.weight is model.head.weight
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**huggingface_config(model.config)))
    assert model.count_parameters() == theirs.num_parameters()
    assert model.count_parameters() - model.count_parameters(embeddings=False) == (50_257 + 256) * 192


@both_positions
def test_bf16_is_near_fp32_also_under_autocast(small, ids, positions):
    model = small(positions=positions)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    exact = model(inputs, targets=targets).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(inputs, targets=targets).loss
    half = model.bfloat16()(inputs, targets=targets).loss
    half.backward()
    assert mixed.dtype == half.dtype == torch.float32
    assert mixed.item() == pytest.approx(exact, rel=0.02) and half.item() == pytest.approx(exact, rel=0.02)
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in model.parameters())


def test_torch_compile_takes_it_whole(small, ids):
    model, inputs, targets = small(), ids[:, :-1], ids[:, 1:]
    model.checkpoint_activations(2)
    loss = model(inputs, targets=targets).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    again = compiled(inputs, targets=targets).loss
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(torch.autograd.grad(again, list(model.parameters())), expected)


def test_two_passes_are_bit_equal(small, ids):
    def gradients():
        model = small()
        model(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
        return [p.grad for p in model.parameters()]

    assert all(a.equal(b) for a, b in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize(
    "values, lines",
    [
        ({"n_embd": 100}, ["model.n_embd = 100: not divisible by model.n_head = 6; take 96 or 108"]),
        (
            {"n_embd": 100, "positions": "learned"},
            ["model.n_embd = 100: not divisible by model.n_head = 6; take 96 or 102"],
        ),
        (
            {"n_embd": 18},
            ["model.n_embd = 18: gives heads of odd width 3, rotary positions need even ones; take 12 or 24"],
        ),
        ({"n_embd": 4}, ["model.n_embd = 4: not divisible by model.n_head = 6; take 12"]),
        ({"n_head": 0}, ["model.n_head = 0: input should be greater than 0"]),
        ({"init_std": 0}, ["model.init_std = 0: input should be greater than 0"]),
        ({"position": "learned"}, ["model.position: no such key; did you mean model.positions?"]),
        ({"positions": "alibi"}, ["model.positions = 'alibi': input should be 'rotary' or 'learned'"]),
    ],
)
def test_an_impossible_size_is_named_with_a_cure(values, lines):
    config, problems = validate(GPT2Config, {"n_head": 6, **values}, "model")
    assert (config, problems) == (None, lines)


def test_odd_heads_are_fine_with_learned_positions():
    assert GPT2Config(n_head=6, n_embd=18, positions="learned").n_embd == 18


def test_a_cure_that_is_offered_is_one():
    for n_embd in range(1, 60):
        config, problems = validate(GPT2Config, {"n_head": 6, "n_embd": n_embd}, "model")
        for word in problems[0].rpartition("take ")[2].split(" or ") if config is None else []:
            assert GPT2Config(n_head=6, n_embd=int(word)).n_embd == int(word)
