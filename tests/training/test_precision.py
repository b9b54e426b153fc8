"""bf16 where the hardware is fast at it, and only where it is exact enough."""

import pytest
import torch

from dsllm.models import build_model
from dsllm.models.gpt2 import GPT2Config
from dsllm.training.precision import fastest_precision, product_seconds


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


@pytest.mark.parametrize(
    ("bf16", "chosen"), [(0.2, "bf16"), (0.8, "bf16"), (0.9, "fp32"), (1.0, "fp32"), (3.0, "fp32")]
)
def test_a_cpu_takes_bf16_if_it_is_clearly_faster_at_it(bf16, chosen):
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16}
    assert fastest_precision(torch.device("cpu"), seconds.__getitem__) == chosen


def test_a_cpu_is_timed():
    assert 0 < product_seconds(torch.bfloat16) < 10
    assert fastest_precision(torch.device("cpu")) in ("fp32", "bf16")
