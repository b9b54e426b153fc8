"""A model card of what a run's own records say, and of nothing else."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsllm.exchange.forms import Form
from dsllm.training.checkpoints import Checkpoint
from dsllm.training.monitor import METRICS, read_metrics

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [dsllm]
---
# {name}

A language model trained with dsllm, as `{architecture}` of transformers.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}"{options})
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

| | |
|---|---|
{table}

Losses are means over the tokens of the split, in nats. The tokenizer is {tokenizer}; a document ends with token
{end_of_text}.
"""


def model_card(checkpoint: Checkpoint, name: str, form: Form) -> str:
    """The text of README.md."""
    parameters = sum(map(math.prod, form.shapes.values()))
    rows = {"parameters": f"{parameters:,}", **dict(_training(checkpoint)), **dict(_results(checkpoint))}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    tokenizer = checkpoint.origin.tokenizer
    return CARD.format(
        name=name,
        architecture=form.architecture,
        options=", trust_remote_code=True" if form.code else "",
        table=table,
        tokenizer=tokenizer.name,
        end_of_text=tokenizer.end_of_text,
    )


def _training(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    model, progress = checkpoint.config().model, checkpoint.progress
    yield "model", f"{model.name}, {model.n_layer} layers, {model.n_embd} wide, {model.n_head} heads"
    yield "context", f"{model.context:,} tokens"
    yield "trained on", ", ".join(Path(path).name for path in checkpoint.config().data.paths)
    yield "training tokens", f"{progress.tokens:,}"
    yield "training FLOPs", f"{progress.flops:.3g}"
    yield "optimizer steps", f"{progress.step:,}"
    for record in _records(checkpoint, "growth"):
        layers = f"{record['layers_before']} → {record['layers_after']} layers"
        yield f"grown after step {record['step']:,}", f"{record['operator']}, {layers}"


def _results(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    for record in _records(checkpoint, "eval"):
        if record["step"] == checkpoint.progress.step and record["loss"] is not None:
            words = f"{record['loss']:.4f}, {record['bits_per_byte']:.4f} bits per byte"
            yield f"loss on {record['split']}", f"{words}, perplexity {math.exp(record['loss']):.2f}"


def _records(checkpoint: Checkpoint, kind: str) -> Iterator[dict[str, Any]]:
    """Records of a kind up to the checkpoint, if its run is still around it."""
    run_dir = checkpoint.path.parent.parent
    if (run_dir / METRICS).exists():
        records = read_metrics(run_dir)
        yield from (r for r in records if r["kind"] == kind and r["step"] <= checkpoint.progress.step)
