"""litgpt's model, loss and Fabric in the steps of its pretrain.py, which always compiles.

python benchmarks/peers/litgpt_pretrain.py PROBLEM [--precision bf16]

Its GPT has no learned positions: it gets rotary ones, and weights of its own.
"""

import time

import lightning
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.pretrain import initialize_weights
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from worker import Worker

worker = Worker()
given, settings = worker.settings["model"], worker.settings
fabric = lightning.Fabric(
    accelerator="cpu", devices=1, precision="bf16-mixed" if worker.arguments.precision == "bf16" else "32-true"
)
model = GPT(
    Config(
        block_size=given["n_positions"],
        n_layer=given["n_layer"],
        n_head=given["n_head"],
        n_embd=given["n_embd"],
        vocab_size=given["vocab_size"],
        padded_vocab_size=given["vocab_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        gelu_approximate="tanh",
        norm_class_name="LayerNorm",
    )
)
initialize_weights(fabric, model, n_layer=given["n_layer"], n_embd=given["n_embd"])
model.transformer.wte.weight = model.lm_head.weight  # as train.tie_embeddings does
model = fabric.setup(torch.compile(model))
optimizer = instantiate_torch_optimizer(
    "AdamW",
    model.parameters(),
    lr=settings["lr"],
    betas=tuple(settings["betas"]),
    eps=settings["eps"],
    weight_decay=settings["weight_decay"],
)
optimizer = fabric.setup_optimizers(optimizer)

for batch in worker.batches:
    begun = time.perf_counter()
    loss = chunked_cross_entropy(model(batch[:, :-1].contiguous()), batch[:, 1:].contiguous())
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=settings["grad_clip"])
    optimizer.step()
    optimizer.zero_grad()
    worker.step(begun, loss.item())
worker.answer()
