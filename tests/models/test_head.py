"""The head's loss in pieces: the value and gradients of the plain form, and never all of the logits."""

import shutil
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsllm.models import head
from dsllm.models.head import TiedHead, chunked_cross_entropy


@pytest.fixture(params=[1, 7, 64], ids=["a token a piece", "an odd last piece", "one piece"])
def pieces(request, monkeypatch):
    monkeypatch.setitem(head.LOGITS_HELD, "cpu", request.param * 50)


def inputs(dtype=torch.float32, rows=40):
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 24), torch.randn(50, 24)
    targets = torch.randint(0, 50, (rows,))
    targets[::5] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden, weight, targets):
    return F.cross_entropy((hidden @ weight.t()).float(), targets)


def value_and_gradients(loss, hidden, weight, targets):
    value = loss(hidden, weight, targets)
    return value, *torch.autograd.grad(3 * value, (hidden, weight))


def test_loss_and_gradients_are_those_of_the_plain_form(pieces):
    for ours, theirs in zip(
        value_and_gradients(chunked_cross_entropy, *inputs()), value_and_gradients(plain, *inputs()), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_compiled_it_gives_the_same(dtype, tolerance, monkeypatch):
    monkeypatch.setitem(head.LOGITS_HELD, "cpu", 7 * 50)
    compiled = partial(chunked_cross_entropy, compiled=True)
    for one, other in zip(
        value_and_gradients(compiled, *inputs(dtype)),
        value_and_gradients(chunked_cross_entropy, *inputs(dtype)),
        strict=True,
    ):
        assert (one - other).norm() <= tolerance * other.norm()
    with torch.no_grad():
        assert compiled(*inputs(dtype)).item() == pytest.approx(plain(*inputs(dtype)).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_weights_is_summed_in_fp32(dtype):
    hidden, weight, targets = inputs(dtype)
    value, d_hidden, d_weight = value_and_gradients(chunked_cross_entropy, hidden, weight, targets)
    _, reference_hidden, reference_weight = value_and_gradients(plain, *inputs())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain(hidden, weight, targets).item(), rel=1e-5)
    assert d_hidden.dtype == d_weight.dtype == dtype
    for ours, theirs in ((d_hidden, reference_hidden), (d_weight, reference_weight)):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


def test_autocast_multiplies_in_bf16_and_gives_fp32_gradients():
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, d_hidden, d_weight = value_and_gradients(chunked_cross_entropy, hidden, weight, targets)
    half = plain(hidden.bfloat16(), weight.bfloat16(), targets)
    assert value.item() == pytest.approx(half.item(), rel=1e-5)
    assert value.item() != plain(hidden, weight, targets).item()
    assert d_hidden.dtype == d_weight.dtype == torch.float32


def test_fp16_gradients_survive_many_tokens_under_a_loss_scale():
    torch.manual_seed(0)
    hidden = torch.randn(4096, 8, dtype=torch.float16).requires_grad_()
    weight = torch.randn(50, 8, dtype=torch.float16)
    targets = torch.randint(0, 50, (4096,))
    scale = 2.0**12
    (scaled,) = torch.autograd.grad(scale * chunked_cross_entropy(hidden, weight, targets), hidden)
    exact = hidden.detach().float().requires_grad_()
    (reference,) = torch.autograd.grad(plain(exact, weight.float(), targets), exact)
    assert ((scaled.float() / scale) - reference).norm() < 0.01 * reference.norm()


def test_ignored_targets_change_neither_loss_nor_gradients():
    hidden, weight, targets = inputs()
    kept = targets != -100
    _, d_hidden, d_weight = value_and_gradients(chunked_cross_entropy, hidden, weight, targets)
    alone = hidden.detach()[kept].requires_grad_()
    value, d_alone, d_weight_alone = value_and_gradients(chunked_cross_entropy, alone, weight, targets[kept])
    assert value.item() == pytest.approx(chunked_cross_entropy(hidden, weight, targets).item(), rel=1e-6)
    assert not d_hidden[~kept].any()
    torch.testing.assert_close(d_hidden[kept], d_alone)
    torch.testing.assert_close(d_weight, d_weight_alone)


def test_without_any_target_the_loss_is_zero_and_so_are_the_gradients():
    hidden, weight, targets = inputs()
    value, d_hidden, d_weight = value_and_gradients(
        chunked_cross_entropy, hidden, weight, torch.full_like(targets, -100)
    )
    assert value == 0 and not d_hidden.any() and not d_weight.any()


def test_a_hopeless_target_has_a_large_finite_loss():
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]])
    assert chunked_cross_entropy(hidden, weight, torch.tensor([1])).item() == 2000.0


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, targets = inputs()
    chunked_cross_entropy(hidden, weight.requires_grad_(False), targets).backward()
    assert weight.grad is None and hidden.grad.any()


def test_without_gradients_it_computes_no_gradient_products():
    hidden, weight, targets = inputs()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counted, torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, targets)
    assert counted.get_total_flops() == 2 * 40 * 24 * 50
    assert not loss.requires_grad


def test_the_tied_head_shares_the_embeddings_parameter():
    embedding = nn.Embedding(50, 24)
    tied = TiedHead(embedding)
    assert tied.weight is embedding.weight
    hidden, _, targets = inputs()
    torch.testing.assert_close(tied(hidden), hidden @ embedding.weight.t())
    torch.testing.assert_close(tied(hidden, targets), plain(hidden, embedding.weight, targets))


def test_for_generation_it_scores_the_same_and_copies_its_weights_only_for_many_tokens():
    tied = TiedHead(nn.Embedding(2500, 24))  # more than two strips
    hidden = torch.randn(3, 24)
    torch.testing.assert_close(tied.for_generation()(hidden), tied(hidden))
    torch.testing.assert_close(tied.for_generation(64)(hidden), tied(hidden))
    assert tied.for_generation(1) is tied
