"""nanoGPT's model and optimizer in the steps of its train.py; its checkout is the user's, none of its code is here.

python benchmarks/peers/nanogpt.py PROBLEM --checkout ~/nanoGPT [--precision bf16] [--compile]
"""

import sys
import time
from contextlib import nullcontext

import torch
from worker import Worker

worker = Worker(checkout=True)
sys.path.insert(0, str(worker.arguments.checkout))
from model import GPT, GPTConfig  # noqa: E402  (the checkout's)

given, settings = worker.settings["model"], worker.settings
shape = {"n_layer": given["n_layer"], "n_head": given["n_head"], "n_embd": given["n_embd"]}
model = GPT(GPTConfig(**shape, block_size=given["n_positions"], vocab_size=given["vocab_size"], dropout=0.0))
turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
weights = {name: tensor.t() if name.endswith(turned) else tensor for name, tensor in worker.weights.items()}
missing, unexpected = model.load_state_dict(weights, strict=False)
assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
optimizer = model.configure_optimizers(settings["weight_decay"], settings["lr"], tuple(settings["betas"]), "cpu")
run = torch.compile(model) if worker.arguments.compile else model
bf16 = worker.arguments.precision == "bf16"

for batch in worker.batches:
    inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
    begun = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
        _, loss = run(inputs, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    worker.step(begun, loss.item())
worker.answer()
