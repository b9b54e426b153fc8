"""2 → 1 → 3 → 2 ranks, another ZeRO stage each time, in the middle of a growth schedule: the losses are the same."""

from pathlib import Path

import pytest

from dsllm.training.checkpoints import Checkpoint, complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.forked import begin, ended

pytestmark = pytest.mark.slow(seconds=25)

STEPS = 12
STOPPING = """
import signal, sys
from dsllm.training import command

class Stopping:
    def after_step(self, outcome):
        super().after_step(outcome)
        if self.progress.step in (3, 6, 9):
            signal.raise_signal(signal.SIGTERM)

def trainer_for(config, world, fresh):
    kind = command.BaseTrainer if config.growth is None else command.ProgressiveTrainer
    return type("Stopping" + kind.__name__, (Stopping, kind), {})(config, world, fresh)

command.run(trainer_for, sys.argv[1:])
"""
MODELS = {
    "plain": "model: {name: gpt2, n_layer: 2, n_head: 2, n_embd: 16, context: 16}",
    # Grows after step 4, trains adapters on frozen blocks, and all of them from step 8 on.
    "growing": """model: {name: progressive, n_layer: 2, n_head: 2, n_embd: 16, context: 16}
growth: {preset: diverge_consolidate, operator: interpose, lora: {rank: 2}, diverge_share: 0.5, watch_every: 0,
         policy: {name: schedule, at: [0.34]}, probe_samples: 4}""",
}


def lives(model: str, data: Path, folder: Path, ranks: list[int], stages: list[int]) -> dict[int, float]:
    """Train from stop to stop, each life with its own ranks and stage; losses by step."""
    folder.mkdir()
    script, recipe = folder / "stopping.py", folder / "recipe.yaml"
    script.write_text(STOPPING)
    recipe.write_text(
        f"""run_dir: {folder / "run"}
{MODELS[model]}
data: {{path: {data}}}
train: {{steps: {STEPS}, micro_batch_size: 2, global_batch_size: 12, lr: 1.0e-2, precision: fp32, eval_every: 0,
        test_samples: 0, checkpoint_every: 0}}
monitor: {{log_every: 1, tensorboard: false}}
"""
    )
    for number, (size, stage) in enumerate(zip(ranks, stages, strict=True)):
        command = [str(script), f"--config={recipe}", f"--train.ds_config=ds_configs/zero{stage}.json"]
        code = ended(begin(command, folder / "log", size, again=True), 120)
        assert code == (0 if number == len(ranks) - 1 else 143), (folder / "log").read_text()
    records = [record for record in read_metrics(folder / "run") if record["kind"] == "train"]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    resumed = [(r["step"], r["world_size"]) for r in read_metrics(folder / "run") if r.get("event") == "resume"]
    assert resumed[-1] == (9, ranks[-1])
    return {record["step"]: record["loss"] for record in records}


@pytest.mark.parametrize("model", MODELS)
def test_other_ranks_and_stages_give_the_losses_of_one_process(model, data_folder, tmp_path):
    alone = lives(model, data_folder, tmp_path / "alone", [1, 1, 1, 1], [0, 0, 0, 0])
    for number, stages in enumerate([[0, 1, 2, 3], [3, 2, 0, 1]]):
        losses = lives(model, data_folder, tmp_path / str(number), [2, 1, 3, 2], stages)
        assert losses == pytest.approx(alone, rel=1e-5)
    last = Checkpoint.read(complete_checkpoints(tmp_path / "0" / "run")[-1])
    assert last.progress.consumed_samples == 12 * STEPS
