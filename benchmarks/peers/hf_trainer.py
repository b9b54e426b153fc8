"""Hugging Face's Trainer around its own GPT-2, by itself or with DeepSpeed.

python benchmarks/peers/hf_trainer.py PROBLEM [--precision bf16] [--compile]
"""

import os
import tempfile
import time
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset, SequentialSampler
from worker import Worker

worker = Worker()
settings = worker.settings
config = transformers.GPT2Config(**settings["model"])
model = transformers.GPT2LMHeadModel(config)
missing, unexpected = model.load_state_dict(worker.weights, strict=False)
assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
steps, sequences, _ = worker.batches.shape


class Samples(Dataset):
    """Sample by sample; `labels` are shifted by the model, so that it sees as many targets less one a sample."""

    def __len__(self) -> int:
        return steps * sequences

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = worker.batches[index // sequences, index % sequences]
        return {"input_ids": tokens[:-1], "labels": tokens[:-1], "shift_labels": tokens[1:]}


class Clock(transformers.TrainerCallback):
    """Tells the worker of each step."""

    begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            worker.step(self.begun, logs["loss"])


class InOrder(transformers.Trainer):
    """Batches in the order in which all contenders see them."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(Samples())


with tempfile.TemporaryDirectory() as folder:
    arguments = transformers.TrainingArguments(
        folder,
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=sequences,
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1],
        adam_epsilon=settings["eps"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["grad_clip"],
        optim="adamw_torch_fused",
        bf16=worker.arguments.precision == "bf16",
        torch_compile=worker.arguments.compile,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
    )
    InOrder(model, arguments, train_dataset=Samples(), callbacks=[Clock()]).train()
worker.answer()
os._exit(0)
