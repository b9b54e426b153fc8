"""The loss of the language-model head: ms and peak memory, forward and backward, of ours and of what others offer.

    python benchmarks/head.py [--repeats 9] [--size 2048 192] [--pieces 25]

Hidden states (rows, width) against 50,304 words: 2,048 × 192 as in the origin's baseline on a CPU, 16,384 × 768 as in
GPT-2 124M on a GPU. The contenders take turns after a first turn that is left out. Of each the loss and both gradients
are held against those of F.cross_entropy in fp32, and how far off they are is told. On a GPU the peak is what torch's
allocator reached above the inputs, Liger's kernel is a contender if it is installed, and `--pieces` takes several
sizes of ours, as powers of two of logits held at once.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

from dsllm.machine import default_device
from dsllm.models import head
from dsllm.models.head import chunked_cross_entropy
from dsllm.training.precision import DTYPES, Precision

WORDS = 50304
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once, the loss in fp32."""
    return F.cross_entropy((hidden @ weight.t()).float(), targets)


def ours(logits_held: int, compiled: bool, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    head.LOGITS_HELD[hidden.device.type] = logits_held
    return chunked_cross_entropy(hidden, weight, targets, compiled)


def contenders(powers: list[int]) -> dict[str, Loss]:
    found: dict[str, Loss] = {"F.cross_entropy": whole, "F.cross_entropy, compiled": torch.compile(whole)}
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512)  # type: ignore[attr-defined]
        found["F.linear_cross_entropy, chunks of 512"] = partial(_torchs, options)
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        if torch.cuda.is_available():
            liger = LigerFusedLinearCrossEntropyLoss()
            found["Liger"] = lambda hidden, weight, targets: liger(weight, hidden, targets)
    except ImportError:
        pass
    for power in powers:
        for words, compiled in (("", False), (", compiled", True)):
            found[f"ours, 2^{power} logits{words}"] = partial(ours, 2**power, compiled)
    return found


def _torchs(options: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    found: Tensor = F.linear_cross_entropy(hidden, weight, targets, options=options)  # type: ignore[attr-defined]
    return found


def gradients(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """The loss and its gradients by the hidden states and by the weights."""
    hidden, weight, targets = inputs
    value = loss(hidden, weight, targets)
    return [value.detach(), *torch.autograd.grad(value, (hidden, weight))]


def _apart(value: Tensor, exact: Tensor) -> float:
    return float((value.float() - exact).norm() / exact.norm())


def measured(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Milliseconds, and MiB above the inputs on a GPU (elsewhere nothing is known of it)."""
    on_gpu, before = inputs[0].is_cuda, 0
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begun = time.perf_counter()
    float(gradients(loss, inputs)[1][0, 0])  # waits for the device
    ms = 1000 * (time.perf_counter() - begun)
    return ms, (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = default_device()
    on_gpu = device.type == "cuda"
    parser.add_argument("--repeats", type=int, default=20 if on_gpu else 9)
    parser.add_argument("--size", type=int, nargs=2, default=[16384, 768] if on_gpu else [2048, 192])
    parser.add_argument("--pieces", type=int, nargs="+", default=[25, 26, 27, 28, 29] if on_gpu else [24, 25, 26])
    arguments = parser.parse_args()
    rows, width = arguments.size
    torch.manual_seed(0)
    wide = torch.randn(rows, width, device=device), torch.randn(WORDS, width, device=device) * width**-0.5
    targets = torch.randint(0, WORDS, (rows,), device=device)
    found: list[dict[str, Any]] = []
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    losses = contenders(arguments.pieces)
    torch._dynamo.config.recompile_limit = 64  # sizes and precisions of one code
    exact = gradients(whole, (wide[0].requires_grad_(), wide[1].requires_grad_(), targets))
    for precision in precisions:
        hidden, weight = (tensor.detach().to(DTYPES[precision]).requires_grad_() for tensor in wide)
        inputs = hidden, weight, targets
        apart = {
            name: [_apart(*pair) for pair in zip(gradients(loss, inputs), exact, strict=True)]
            for name, loss in losses.items()
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in losses}
        for _ in range(arguments.repeats):
            for name, loss in losses.items():
                times[name].append(measured(loss, inputs))
        for name, of in times.items():
            ms, memory = report.summary([one[0] for one in of]), statistics.median(one[1] for one in of)
            found.append({"contender": name, "precision": precision, "ms": ms, "mib": memory, "apart": apart[name]})
    cells = []
    for row in found:
        off = [f"{value:.0e}" for value in row["apart"]]
        peak = f"{row['mib']:,.0f}" if on_gpu else "—"
        cells.append([row["contender"], row["precision"], report.spread(row["ms"], 2 if on_gpu else 0), peak, *off])
    about = report.machine("torch")
    text = f"{rows:,} × {width} → {WORDS:,}; {report.described(about)}; median (least–most) of {arguments.repeats}"
    header = ["contender", "precision", "ms", "peak MiB", "loss off by", "hidden's gradient", "weights' gradient"]
    name = "head_gpu" if on_gpu else "head"
    report.write(name, {"machine": about, "arms": found}, f"{text}\n\n{report.table(header, cells)}")


if __name__ == "__main__":
    main()
