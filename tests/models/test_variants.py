"""What every kind of growing model can do: go on from a cache, stay causal, recompute, count, begin without memory."""

import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsllm.models import skeleton
from dsllm.models.progressive import ProgressiveConfig
from tests.launching import run
from tests.models.conftest import VARIANTS

every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


@every_variant
def test_neither_the_cache_nor_a_draft_changes_a_token(progressive, ids, variant):
    model = progressive(**variant)
    for prompt in (1, 5, 16):
        cached = model.generate(ids[:, :prompt], 30, seed=5)
        assert model.generate(ids[:, :prompt], 30, seed=5, use_cache=False).equal(cached)
        drafted = model.generate(ids[:1, :prompt], 30, temperature=0)
        assert model.generate(ids[:1, :prompt], 30, temperature=0, draft=False).equal(drafted)


@every_variant
def test_changing_a_token_leaves_earlier_logits_bit_equal(progressive, ids, variant):
    model, inputs = progressive(**variant).eval(), ids[:1, :-1]
    before = model(inputs).logits
    for t in range(16):
        changed = inputs.clone()
        changed[0, t] = (changed[0, t] + 1) % 61
        after = model(changed).logits
        assert after[0, :t].equal(before[0, :t])
        assert not torch.isclose(after[0, t], before[0, t]).all()


@every_variant
def test_packed_documents_are_each_as_if_alone(progressive, ids, variant):
    model = progressive(**variant, positions="learned")
    documents = torch.tensor([4] * 7 + [9] * 9).expand(2, -1)
    packed = model(ids[:, :-1], document_ids=documents).logits
    torch.testing.assert_close(packed[:, 7:], model(ids[:, 7:-1]).logits, rtol=1e-5, atol=1e-5)


def gradients(model, ids):
    loss = model(ids[:, :-1], targets=ids[:, 1:]).loss
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss, *torch.autograd.grad(loss, trained)]


@every_variant
def test_recomputed_activations_give_the_same_loss_and_gradients(progressive, ids, variant):
    model = progressive(**variant)
    expected = gradients(model, ids)
    for policy in ("all", 3):
        model.checkpoint_activations(policy)
        assert all(a.equal(b) for a, b in zip(gradients(model, ids), expected, strict=True))


@every_variant
def test_two_passes_are_bit_equal_and_every_trained_parameter_moves(progressive, ids, variant):
    first, second = (gradients(progressive(**variant), ids) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert all(gradient.any() for gradient in first)


@every_variant
def test_each_executed_block_can_be_recomputed(progressive, variant):
    model = progressive(**variant)
    model.checkpoint_activations(list(range(model.n_blocks)))
    assert model.n_blocks == (8 if "lateral" in variant else 4)


@every_variant
def test_the_skeleton_has_the_same_parameters_without_memory(progressive, variant):
    model = progressive(**variant)
    bare = skeleton(model.config)
    assert not list(bare.buffers()) and all(parameter.is_meta for parameter in bare.parameters())
    for deduplicated in (True, False):
        facts = [
            [(name, p.shape, p.requires_grad) for name, p in m.named_parameters(remove_duplicate=deduplicated)]
            for m in (model, bare)
        ]
        assert facts[0] == facts[1]


SKELETONS = """
import sys
from dsllm.models import MODELS, skeleton

for name in ("gpt2", "progressive", "conv_attention"):
    sizes = dict(n_layer=12, n_head=2, n_embd=16, context=32, vocab_size=61)
    assert all(parameter.is_meta for parameter in skeleton(MODELS[name].Config(name=name, **sizes)).parameters())
print("torch._dynamo" in sys.modules)
"""


def test_a_skeleton_imports_no_compiler():
    assert run([sys.executable, "-c", SKELETONS]).split()[-1] == "False"


@every_variant
def test_each_parameter_has_an_initial_value_from_its_generator(progressive, variant):
    model = progressive(**variant)
    for name, parameter in model.named_parameters():
        values = []
        for seed in (1, 1, 2):
            tensor = torch.full_like(parameter, torch.nan)
            with torch.no_grad():
                model.initial(name, tensor, torch.Generator().manual_seed(seed))
            values.append(tensor)
        constant = (parameter.dim() == 1 and "coefficients" not in name) or name.endswith("lora_B")
        assert values[0].isfinite().all() and values[0].equal(values[1]), name
        assert values[0].equal(values[2]) == constant, name


@every_variant
def test_every_module_registers_what_it_computes_with(progressive, ids, variant):
    """ZeRO-3 gathers a module's own parameters when the module runs, and no others."""
    model, ran = progressive(**variant), set()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: ran.update(module.parameters(recurse=False)))
    model(ids[:, :-1], targets=ids[:, 1:])
    assert ran == set(model.parameters())


@every_variant
def test_the_flops_formulas_are_what_the_passes_count(progressive, ids, variant):
    model, inputs = progressive(**variant), ids[:, :-1]
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(inputs)
    assert forward.get_total_flops() == inputs.numel() * model.forward_flops_per_token(16)
    with FlopCounterMode(display=False) as both, sdpa_kernel(SDPBackend.MATH):
        model(inputs, targets=ids[:, 1:]).loss.backward()
    formula = model.flops_per_token(16)
    if variant.get("lora", {}).get("freeze") == "all":
        formula -= 2 * 32 * (3 * 32 + 3 * 3)  # the gradient of the first map's and its adapters' input, as documented
    assert both.get_total_flops() == inputs.numel() * formula


@every_variant
def test_each_trainable_parameter_is_in_exactly_one_group(progressive, variant):
    model = progressive(**variant)
    grouped = [id(p) for group in model.parameter_groups(0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@every_variant
def test_a_section_reads_back_as_it_was(progressive, variant):
    config = progressive(**variant).config
    assert ProgressiveConfig.model_validate_json(config.model_dump_json()) == config


@every_variant
def test_bf16_is_near_fp32_also_under_autocast(progressive, ids, variant):
    model = progressive(**variant)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    exact = model(inputs, targets=targets).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(inputs, targets=targets).loss
    half = model.bfloat16()(inputs, targets=targets).loss
    half.backward()
    assert mixed.item() == pytest.approx(exact, rel=0.02) and half.item() == pytest.approx(exact, rel=0.02)
    assert all(
        p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad
    )
