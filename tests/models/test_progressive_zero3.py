"""Under ZeRO-3 every kind of block finds its parameters when it runs, also again and also while recomputing.

A variant trains as the plain model does: the same losses, and at the end the same weights; what is frozen keeps its
bits, and each lora_B has moved after two steps.
"""

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dsllm.models.progressive import Progressive, ProgressiveConfig
from dsllm.training.backend import import_deepspeed
from tests.forked import forked_ranks
from tests.models.conftest import SMALL, VARIANTS

STEPS, LR = 2, 1e-3
ZERO3 = {
    "train_batch_size": 4,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "steps_per_print": 1000,
}


def model_and_optimizer(variant):
    torch.manual_seed(0)
    model = Progressive(ProgressiveConfig(**{**SMALL, "n_layer": 4, **VARIANTS[variant]}))
    groups = model.parameter_groups(0.1)
    for group in groups:
        group["lr"] = LR * group.pop("lr_scale", 1.0)
    return model, torch.optim.AdamW(groups)


def batches():
    return torch.randint(0, 61, (STEPS, 4, 17), generator=torch.Generator().manual_seed(1))


def plain_training(variant):
    """Losses before each step, and the weights after the last."""
    model, optimizer = model_and_optimizer(variant)
    losses = []
    for step, batch in enumerate(batches()):
        model.set_step(step + 3)
        loss = model(batch[:, :-1], targets=batch[:, 1:]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), dict(model.named_parameters())


def zero3_training(rank: int, size: int, folder: Path, recompute: str):
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed wants to hear it from a launcher
    deepspeed = import_deepspeed()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    for variant in VARIANTS:
        model, optimizer = model_and_optimizer(variant)
        model.checkpoint_activations(recompute)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ZERO3, dist_init_required=False)
        assert all(parameter.numel() == 0 for parameter in model.parameters()), "not partitioned: this proves nothing"
        losses = []
        for step, batch in enumerate(batches()):
            model.set_step(step + 3)
            mine = batch.chunk(size)[rank]
            loss = engine(mine[:, :-1], targets=mine[:, 1:]).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
        mean = torch.stack(losses) / size
        dist.all_reduce(mean)
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        if rank == 0:
            torch.save((mean, weights), Path(folder, variant))
        engine.destroy()
        del engine, model, optimizer
        gc.collect()
    dist.destroy_process_group()


@pytest.mark.slow(seconds=35)
@pytest.mark.parametrize("size, recompute", [(1, "none"), (2, "all")])
def test_every_variant_trains_under_zero3_as_it_does_alone(tmp_path, size, recompute):
    forked_ranks(zero3_training, size, size, tmp_path, recompute)
    for variant in VARIANTS:
        losses, weights = torch.load(tmp_path / variant)
        plain_losses, plain_weights = plain_training(variant)
        fresh = dict(model_and_optimizer(variant)[0].named_parameters())
        torch.testing.assert_close(losses, plain_losses, rtol=1e-5, atol=1e-5, msg=lambda m, v=variant: f"{v}: {m}")
        for name, weight in weights.items():
            trained = plain_weights[name]
            if not trained.requires_grad:
                assert weight.equal(fresh[name]), f"{variant}: {name} is frozen, and moved"
                continue
            assert not weight.equal(fresh[name]), f"{variant}: {name} did not move"
            # Adam turns a gradient's sign into a step, so where a gradient is near nought rounding decides.
            assert (weight - trained).abs().mean() < 0.02 * LR, f"{variant}: {name}"
