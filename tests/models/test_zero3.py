"""Under ZeRO-3 no rank holds a whole parameter: the tied head must still find its weight, and the loss be the same."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dsllm.models.gpt2 import GPT2, GPT2Config
from dsllm.training.backend import import_deepspeed
from tests.forked import forked_ranks

STEPS, LR = 4, 1e-2
CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=32, context=16, vocab_size=61)
ZERO3 = {
    "train_batch_size": 4,
    "gradient_clipping": 0.0,  # left out it is 1
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "steps_per_print": 1000,
}


def model_and_optimizer():
    torch.manual_seed(0)
    model = GPT2(CONFIG)
    return model, torch.optim.AdamW(model.parameter_groups(0.1), lr=LR)


def batches():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 61, (STEPS, 4, 17), generator=generator)


def plain_losses():
    """Each step's loss before it, and the loss on the first batch at the end."""
    model, optimizer = model_and_optimizer()
    losses = []
    for batch in batches():
        loss = model(batch[:, :-1], targets=batch[:, 1:]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(model(batches()[0, :, :-1], targets=batches()[0, :, 1:]).loss.item())
    return torch.tensor(losses)


def zero3_losses(rank: int, size: int, folder: Path, recompute: str):
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed wants to hear it from a launcher
    deepspeed = import_deepspeed()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    model, optimizer = model_and_optimizer()
    model.checkpoint_activations(recompute)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ZERO3, dist_init_required=False)
    assert model.wte.weight.numel() == 0, "the embedding was not partitioned, so the test would prove nothing"
    losses = []
    for batch in batches():
        mine = batch.chunk(size)[rank]
        loss = engine(mine[:, :-1], targets=mine[:, 1:]).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    engine.eval()
    mine = batches()[0].chunk(size)[rank]
    with torch.no_grad():
        losses.append(engine(mine[:, :-1], targets=mine[:, 1:]).loss)
    mean = torch.stack(losses) / size
    dist.all_reduce(mean)
    if rank == 0:
        torch.save(mean, Path(folder, "losses"))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("size, recompute", [(1, "none"), (2, "all")])
def test_zero3_trains_with_the_losses_of_the_plain_model(tmp_path, size, recompute):
    forked_ranks(zero3_losses, size, size, tmp_path, recompute)
    torch.testing.assert_close(torch.load(tmp_path / "losses"), plain_losses(), rtol=1e-5, atol=1e-5)
