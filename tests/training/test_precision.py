"""bf16 where the hardware is fast at it, and only where it is exact enough."""

import torch

from dsllm.models import build_model
from dsllm.models.gpt2 import GPT2Config
from dsllm.training.precision import fastest_precision


def gradients(autocast: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(GPT2Config(n_layer=2, n_head=2, n_embd=32, context=256, vocab_size=320))
    tokens = torch.randint(0, 320, (8, 257))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(tokens[:, :-1], targets=tokens[:, 1:]).loss
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_gradients_of_autocast_over_fp32_weights_are_those_of_fp32_to_bf16s_rounding():
    exact, rounded = gradients(autocast=False), gradients(autocast=True)
    errors = {name: float((rounded[name] - exact[name]).norm() / exact[name].norm()) for name in exact}
    # A key's bias shifts all scores of a row alike, which softmax does not see: its gradient is zero but for rounding.
    errors = {name: error for name, error in errors.items() if not name.endswith("qkv.bias")}
    assert max(errors.values()) < 0.03, errors


def test_a_cpu_is_asked_for_its_instructions():
    abilities = torch.cpu.get_capabilities()
    fast = any(abilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert fastest_precision(torch.device("cpu")) == ("bf16" if fast else "fp32")
