"""A GPT-2 small enough that a test builds it, and large enough that each of its parts matters."""

from collections.abc import Callable, Iterator

import pytest
import torch

from dsllm.models.gpt2 import GPT2, GPT2Config

SMALL = {"n_layer": 3, "n_head": 2, "n_embd": 32, "context": 16, "vocab_size": 61}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These matrices are so small that on a busy machine two threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small() -> Callable[..., GPT2]:
    """Builds a small model, its weights moved off their initial values so that no branch is near zero."""

    def build(**changes: object) -> GPT2:
        torch.manual_seed(0)
        model = GPT2(GPT2Config(**{**SMALL, **changes}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return build


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows that fill the small model's context, and one token more for targets."""
    return torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(1))
