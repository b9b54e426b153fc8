"""What the engine and the loop add to a training step: `launch/train.py`'s own beside a bare one, step by step.

    python benchmarks/overhead.py [--steps 40] [--precision fp32]

One process, ZeRO 0, the origin's baseline. A trainer that times its own steps (batch, forward, backward, clipping,
update, record) and before each of them takes the same step, on the same batch, with a twin of its model in plain torch:
forward, backward, clip_grad_norm_, AdamW, and the loss read, as a bare loop would. The first steps are left out.
"""

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report

from dsllm.config import RunConfig
from dsllm.errors import user_errors_exit
from dsllm.models import skeleton
from dsllm.training.precision import DTYPES, Precision
from dsllm.training.rates import Outcome
from dsllm.training.sources import MicroBatch
from dsllm.training.tensors import initial_values, materialise
from dsllm.training.trainer import BaseTrainer
from dsllm.training.world import World, joined

WARM_UP = 5


class BesideABareLoop(BaseTrainer):
    """Takes every step twice: in plain torch, and then its own."""

    def __init__(self, config: RunConfig, world: World):
        super().__init__(config, world)
        train = config.train
        self.bare = skeleton(self.model_config)
        materialise(self.bare, initial_values(self.bare, train.seed), only_missing=True)
        self.bare.to(world.device)
        groups = self.bare.parameter_groups(train.weight_decay)
        self.optimizer = torch.optim.AdamW(
            groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps, fused=True
        )
        self.seconds: dict[str, list[float]] = {"bare": [], "ours": []}
        self.losses: dict[str, list[float]] = {"bare": [], "ours": []}

    def before_step(self) -> None:
        batch = self.loader.again(self.progress.consumed_samples)
        begun = time.perf_counter()
        lr = self.lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        micro = MicroBatch.of(batch, 0, self.world.device)
        device, bf16 = self.world.device.type, self.origin.precision == "bf16"
        with torch.autocast(device, dtype=DTYPES["bf16"]) if bf16 else nullcontext():
            loss = self.bare(micro.input_ids, targets=micro.targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.bare.parameters(), self.config.train.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses["bare"].append(loss.item())
        self.begun = time.perf_counter()
        self.seconds["bare"].append(self.begun - begun)

    def after_step(self, outcome: Outcome) -> None:
        self.losses["ours"].append(outcome.loss)
        self.seconds["ours"].append(time.perf_counter() - self.begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--data", default="data/demo")
    arguments = parser.parse_args()
    precision: Precision = arguments.precision
    with user_errors_exit(), tempfile.TemporaryDirectory() as folder, joined() as world:
        overrides = [f"run_dir={folder}/run", f"data.path={arguments.data}", f"train.steps={arguments.steps + WARM_UP}"]
        overrides += [f"train.precision={precision}", "train.ds_config=ds_configs/zero0.json"]
        overrides += ["train.global_batch_size=8", "train.eval_every=0", "train.test_samples=0"]
        overrides += ["monitor.log_every=1"]
        trainer = BesideABareLoop(RunConfig.from_file("launch/recipes/origin_gpt2.yaml", overrides), world)
        trainer.train()
    seconds = {name: of[WARM_UP:] for name, of in trainer.seconds.items()}
    shares = [ours / bare - 1 for bare, ours in zip(seconds["bare"], seconds["ours"], strict=True)]
    apart = max(abs(a - b) for a, b in zip(trainer.losses["bare"], trainer.losses["ours"], strict=True))
    facts: dict[str, Any] = {"machine": report.machine("torch", "deepspeed"), "precision": precision}
    facts |= {name: report.summary([1000 * second for second in of]) for name, of in seconds.items()}
    facts |= {"overhead": report.summary(shares), "largest_difference_of_losses": apart}
    what = f"The origin's baseline, 8 × 256 tokens a step, {precision}, ZeRO 0, one process"
    text = (
        f"{what}; {report.described(facts['machine'])}; {arguments.steps} pairs of steps. "
        f"The losses of the two differ by up to {apart:.1e}."
    )
    rows = [[name, report.spread(facts[name])] for name in ("bare", "ours")]
    rows.append(["overhead, median of the pairs", f"{statistics.median(shares):+.1%}"])
    report.write("overhead", facts, f"{text}\n\n{report.table(['loop', 'ms per step'], rows)}")


if __name__ == "__main__":
    main()
