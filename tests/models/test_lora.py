"""Adapters: nothing at the start, the same as peft's, and gone without a trace once merged."""

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsllm.config import LoRAConfig
from dsllm.models.layers import MLP, Attention
from dsllm.models.lora import LoRALinear, initial_lora, merged


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def adapted(linear, rank, scale, parts=1, *, trained=True):
    """The linear map with an adapter; trained: its lora_B has left zero."""
    out = LoRALinear(linear.in_features, linear.out_features, rank=rank, scale=scale, parts=parts)
    out.load_state_dict(linear.state_dict(), strict=False)
    if trained:
        nn.init.normal_(out.lora_B, std=0.1)  # by more the softmax would be so sharp that rounding shows
    return out


def plain(linear, weight):
    out = nn.Linear(linear.in_features, linear.out_features)
    out.weight, out.bias = nn.Parameter(weight), linear.bias
    return out


@pytest.mark.parametrize("parts", [1, 3])
def test_a_fresh_adapter_changes_no_bit(parts):
    linear, x = nn.Linear(16, 24), torch.randn(5, 7, 16)
    assert adapted(linear, 4, 2.0, parts, trained=False)(x).equal(linear(x))


@pytest.mark.parametrize("parts", [1, 3])
def test_a_fresh_adapter_has_an_a_that_is_not_dead(parts):
    lora = adapted(nn.Linear(16, 24), 4, 2.0, parts, trained=False)
    lora(torch.randn(5, 16)).square().sum().backward()
    assert lora.lora_B.grad.ne(0).all() and not lora.lora_A.grad.any()
    assert lora.weight.grad is None and lora.bias.grad is None


def test_the_initial_a_is_that_of_peft():
    parameter = torch.empty(8, 64)
    torch.manual_seed(3)
    initial_lora("blocks.0.mlp.up.lora_A", parameter)
    torch.manual_seed(3)
    reference = nn.Linear(64, 8, bias=False)
    assert parameter.equal(reference.weight)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_merged_weight_gives_the_same_output(parts):
    lora, x = adapted(nn.Linear(16, 24), 4, 0.5, parts), torch.randn(50, 16)
    weight = merged(lora.weight, lora.lora_A, lora.lora_B, lora.scale, parts)
    torch.testing.assert_close(plain(lora, weight)(x), lora(x), rtol=0, atol=5e-6)
    exact = lora.double()
    weight = lora.weight + 0.5 * torch.cat(
        [b @ a for a, b in zip(lora.lora_A.chunk(parts), lora.lora_B.chunk(parts), strict=True)]
    )
    torch.testing.assert_close(F.linear(x.double(), weight, lora.bias), exact(x.double()))


def test_merging_reads_half_precision_and_gives_fp32():
    weight, a, b = torch.randn(8, 6), torch.randn(2, 6), 1e-3 * torch.randn(8, 2)
    out = merged(weight.bfloat16(), a.bfloat16(), b.bfloat16(), 1.0)
    exact = weight.bfloat16().double() + b.bfloat16().double() @ a.bfloat16().double()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=1e-7)


def test_merging_leaves_its_sources_alone():
    tensors = torch.randn(6, 6), torch.randn(3, 6), torch.randn(6, 1)
    before = [t.clone() for t in tensors]
    merged(*tensors, 2.0, parts=3)
    assert all(t.equal(b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("scaling, scale", [("rank_stabilised", 16 / 64**0.5), ("standard", 16 / 64)])
def test_the_scale_follows_the_rank_as_the_papers_say(scaling, scale):
    assert LoRAConfig(rank=64, alpha=16, scaling=scaling).scale == pytest.approx(scale, abs=1e-12)


class SeparateAttention(nn.Module):
    """Our attention with q, k and v as three linear maps, which peft adapts one by one."""

    def __init__(self, fused: Attention):
        super().__init__()
        self.n_head = fused.n_head
        for i, name in enumerate(("q", "k", "v")):
            linear = nn.Linear(fused.out.in_features, fused.out.in_features)
            linear.weight = nn.Parameter(fused.qkv.weight.detach().chunk(3)[i].clone())
            linear.bias = nn.Parameter(fused.qkv.bias.detach().chunk(3)[i].clone())
            setattr(self, name, linear)
        self.out = plain(fused.out, fused.out.weight.detach().clone())

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.n_head, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


def peft_adapters(model, config):
    """peft's adapters by the name of the linear map."""
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            use_rslora=config.scaling == "rank_stabilised",
            target_modules=[name for name, module in model.named_modules() if isinstance(module, nn.Linear)],
        ),
    )
    layers = {name.rpartition(".")[2]: m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    return model, {
        n: (m.lora_A["default"].weight, m.lora_B["default"].weight) for n, m in layers.items() if "_" not in n
    }


both_scalings = pytest.mark.parametrize("scaling", ["rank_stabilised", "standard"])


@both_scalings
def test_adapters_on_q_k_and_v_are_those_of_peft(scaling):
    config = LoRAConfig(rank=4, alpha=8.0, scaling=scaling)
    ours, x = Attention(32, 4), torch.randn(2, 9, 32)
    theirs, adapters = peft_adapters(SeparateAttention(ours), config)
    ours.qkv = adapted(ours.qkv, config.rank, config.scale, parts=3)
    ours.out = adapted(ours.out, config.rank, config.scale)
    with torch.no_grad():
        for i, name in enumerate(("q", "k", "v")):
            adapters[name][0].copy_(ours.qkv.lora_A.chunk(3)[i])
            adapters[name][1].copy_(ours.qkv.lora_B.chunk(3)[i])
        adapters["out"][0].copy_(ours.out.lora_A)
        adapters["out"][1].copy_(ours.out.lora_B)
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for side, name in enumerate(("lora_A", "lora_B")):
        gradient = torch.cat([adapters[part][side].grad for part in ("q", "k", "v")])
        torch.testing.assert_close(getattr(ours.qkv, name).grad, gradient, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(getattr(ours.out, name).grad, adapters["out"][side].grad, rtol=1e-4, atol=1e-4)
    whole = theirs.merge_and_unload()
    weight = merged(ours.qkv.weight, ours.qkv.lora_A, ours.qkv.lora_B, config.scale, 3)
    torch.testing.assert_close(weight, torch.cat([whole.q.weight, whole.k.weight, whole.v.weight]), rtol=0, atol=1e-6)


@both_scalings
def test_adapters_on_an_mlp_are_those_of_peft(scaling):
    config = LoRAConfig(rank=6, alpha=12.0, scaling=scaling)
    ours, copy, x = MLP(16), MLP(16), torch.randn(3, 5, 16)
    copy.load_state_dict(ours.state_dict())
    theirs, adapters = peft_adapters(copy, config)
    for name in ("up", "down"):
        setattr(ours, name, adapted(getattr(ours, name), config.rank, config.scale))
        with torch.no_grad():
            adapters[name][0].copy_(getattr(ours, name).lora_A)
            adapters[name][1].copy_(getattr(ours, name).lora_B)
    torch.testing.assert_close(ours(x), theirs(x))
    whole = theirs.merge_and_unload()
    for name in ("up", "down"):
        lora = getattr(ours, name)
        weight = merged(lora.weight, lora.lora_A, lora.lora_B, config.scale)
        torch.testing.assert_close(weight, getattr(whole, name).weight, rtol=0, atol=1e-6)
