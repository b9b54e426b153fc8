"""Convolution attention under DeepSpeed, two ranks, at every ZeRO stage: the losses of the plain model.

One start of the two processes serves all stages, with document masking and the outer levels recomputed.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dsllm.models.conv_attention import ConvAttention
from dsllm.models.conv_attention_config import ConvAttentionConfig
from dsllm.training.backend import import_deepspeed
from tests.forked import forked_ranks

STEPS, LR, SIZE = 4, 1e-2, 2
CONFIG = ConvAttentionConfig(
    n_head=2, n_embd=16, widths=(8, 16, 24), strides=(4, 2), encoder=(1, 0), middle=1, decoder=(0, 1), context=24,
    vocab_size=61,
)  # fmt: skip


def model_and_optimizer():
    torch.manual_seed(0)
    model = ConvAttention(CONFIG)
    return model, torch.optim.AdamW(model.parameter_groups(0.1), lr=LR)


def batches():
    generator = torch.Generator().manual_seed(1)
    documents = torch.randint(0, 2, (4, 24), generator=generator).cumsum(1) // 4
    # Random tokens teach nothing but themselves: the same ones in every step.
    return torch.randint(0, 61, (4, 25), generator=generator).expand(STEPS, -1, -1), documents


def plain_losses():
    model, optimizer = model_and_optimizer()
    tokens, documents = batches()
    losses = []
    for batch in tokens:
        loss = model(batch[:, :-1], targets=batch[:, 1:], document_ids=documents).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses)


def engine_losses(rank: int, folder: Path):
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed wants to hear it from a launcher
    deepspeed = import_deepspeed()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    tokens, documents = batches()
    for stage in range(4):
        model, optimizer = model_and_optimizer()
        model.checkpoint_activations([0, 1, 4, 5])
        zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
        ds_config = {"train_batch_size": 4, "gradient_clipping": 0.0, "zero_optimization": zero, "steps_per_print": 99}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, dist_init_required=False)
        assert (model.wte.weight.numel() == 0) == (stage == 3)
        losses = []
        for batch in tokens:
            mine = batch.chunk(SIZE)[rank]
            loss = engine(mine[:, :-1], targets=mine[:, 1:], document_ids=documents.chunk(SIZE)[rank]).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
        mean = torch.stack(losses) / SIZE
        dist.all_reduce(mean)
        if rank == 0:
            torch.save(mean, Path(folder, f"losses{stage}"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    forked_ranks(engine_losses, SIZE, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_every_zero_stage_gives_the_losses_of_the_plain_model(stage, folder):
    losses = torch.load(folder / f"losses{stage}")
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses, plain_losses(), atol=1e-5, rtol=0)
