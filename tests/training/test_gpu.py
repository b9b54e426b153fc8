"""On a GPU as on a CPU: losses at every ZeRO stage, half precision, resumption, growth, generation, torch.compile."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dsllm.training.checkpoints import complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.launching import DEEPSPEED, GPUS, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(GPUS == 0, reason="needs a GPU")]

CONV = (
    "{name: conv_attention, n_head: 2, n_embd: 32, context: 64, strides: [4, 4], widths: [16, 32, 48], "
    "encoder: [1, 1], middle: 2, decoder: [1, 1], windows: [16, null, null]}"
)
PLAIN = "{name: gpt2, n_layer: 2, n_head: 2, n_embd: 32, context: 64}"
WINDOWED = "{name: gpt2, n_layer: 2, n_head: 2, n_embd: 32, context: 64, positions: rotary, window: 16}"
SHARED = "{name: progressive, n_layer: 4, uses: 2, n_head: 2, n_embd: 32, context: 64}"


def train_on_gpu(recipe: Path, run_dir: Path, launcher: tuple[Any, ...] = (sys.executable,), **overrides: Any) -> str:
    options = [f"--{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    command = [*launcher, "launch/train.py", f"--config={recipe}", f"--run_dir={run_dir}", *options]
    return run(command, on_gpu=True)


def losses(run_dir: Path, kind: str = "train") -> list[float]:
    return [record["loss"] for record in read_metrics(run_dir) if record["kind"] == kind]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_has_the_losses_of_a_cpu(stage, recipe, trained_run, tmp_path):
    train_on_gpu(recipe, tmp_path / "run", train__ds_config=f"ds_configs/zero{stage}.json")
    for kind in ("train", "eval"):
        assert losses(tmp_path / "run", kind) == pytest.approx(losses(trained_run, kind), abs=2e-4)


def test_the_launcher_starts_a_rank_on_the_gpu(recipe, trained_run, tmp_path):
    train_on_gpu(recipe, tmp_path / "run", (*DEEPSPEED, "--num_gpus", 1))
    assert losses(tmp_path / "run") == pytest.approx(losses(trained_run), abs=2e-4)


@pytest.mark.parametrize(("precision", "stage"), [*(("bf16", s) for s in range(4)), *(("fp16", s) for s in (1, 2, 3))])
def test_half_precision_follows_fp32(precision, stage, recipe, trained_run, tmp_path):
    options = {"train__precision": precision, "train__ds_config": f"ds_configs/zero{stage}.json"}
    train_on_gpu(recipe, tmp_path / "run", **options)
    halves, whole = losses(tmp_path / "run"), losses(trained_run)
    assert halves[0] == pytest.approx(whole[0], abs=5e-3)
    assert halves == pytest.approx(whole, abs=5e-2)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ["zero{}.json", "zero{}_offload.json"])
def test_a_resumed_run_goes_on_where_it_was(name, stage, recipe, tmp_path):
    options = {"train__precision": "bf16", "train__ds_config": f"ds_configs/{name.format(stage)}"}
    train_on_gpu(recipe, tmp_path / "run", **options)
    whole = losses(tmp_path / "run")
    shutil.rmtree(complete_checkpoints(tmp_path / "run")[-1])
    assert "resumes at step 4 of 8" in train_on_gpu(recipe, tmp_path / "run", **options)
    assert losses(tmp_path / "run")[:4] == whole[:4]
    # The backward pass of attention sums in no fixed order on a GPU.
    assert losses(tmp_path / "run")[4:] == pytest.approx(whole[4:], abs=2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_model_grows_and_its_receipts_hold(stage, precision, recipe, tmp_path):
    growth = "{preset: diverge_consolidate, operator: zero_init, policy: {name: schedule, at: [0.25]}, lora: {rank: 4}}"
    options = {"model": "{name: progressive, n_layer: 2, n_head: 2, n_embd: 32, context: 32}", "growth": growth}
    options |= {"train__precision": precision, "train__ds_config": f"ds_configs/zero{stage}.json"}
    train_on_gpu(recipe, tmp_path / "run", train__schedule="wsd", **options)
    receipts = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "growth"]
    assert [receipt["operator"] for receipt in receipts] == ["zero_init", "merge"]
    for receipt in receipts:
        assert receipt["problems"] == [] and receipt["gradients_checked"]
        assert abs(receipt["delta_loss"]) <= receipt["tolerance"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolution_attention_trains_generates_embeds_and_is_evaluated(precision, recipe, tmp_path):
    folder = tmp_path / "run"
    options = {"train__precision": precision, "train__ds_config": "ds_configs/zero3.json"}
    train_on_gpu(recipe, folder, model=CONV, train__activation_checkpointing="{levels: [0, 1]}", **options)
    assert losses(folder)[-1] < losses(folder)[0]
    said = []
    for on_gpu in (True, False):
        prompt = ["--prompt", "def sin(", "--temperature", 0, "--max_new_tokens", 100]
        text = run([sys.executable, "launch/generate.py", folder, *prompt], on_gpu=on_gpu)
        near = run([sys.executable, "launch/embed.py", folder, "--compare", "a sine", "a cosine"], on_gpu=on_gpu)
        scored = run([sys.executable, "launch/evaluate.py", folder, "--samples", 8, "--period", 16], on_gpu=on_gpu)
        said.append((text, float(near.split()[0]), json.loads(scored.splitlines()[-1])))
    (text, near, scored), (text_of_cpu, near_of_cpu, scored_on_cpu) = said
    assert text == text_of_cpu
    assert near == pytest.approx(near_of_cpu, abs=1e-3)
    assert scored["loss"] == pytest.approx(scored_on_cpu["loss"], abs=1e-4)
    assert scored["loss_by_phase"] == pytest.approx(scored_on_cpu["loss_by_phase"], abs=1e-3)


COMPILED = """
import sys, torch, yaml
from dsllm.models import build_model
from dsllm.registry import MODELS

def gradients(model, of, ids, documents):
    model.zero_grad()
    loss = of(ids[:, :-1], targets=ids[:, 1:], document_ids=documents).loss
    loss.backward()
    return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.parameters())])

section = yaml.safe_load(sys.argv[1])
torch.manual_seed(0)
model = build_model(MODELS[section["name"]].Config(**section, vocab_size=320)).cuda()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
ids = torch.randint(320, (4, 50), device="cuda")
documents = torch.randint(0, 2, (4, 49), device="cuda").cumsum(1) // 9
for policy, masked in (("none", None), ("all", documents)):
    model.checkpoint_activations(policy)
    plain = gradients(model, model, ids, masked)
    torch.compiler.reset()
    torch.testing.assert_close(gradients(model, torch.compile(model), ids, masked), plain, rtol=1e-3, atol=1e-4)
model.eval()
with torch.no_grad():
    cache = model.new_cache()
    steps = [model.hidden(ids[:, :17], cache=cache)]
    steps += [model.hidden(ids[:, t : t + 1], cache=cache) for t in range(17, 50)]
    torch.testing.assert_close(torch.cat(steps, 1), model.hidden(ids), rtol=1e-3, atol=1e-4)
"""


@pytest.mark.parametrize("section", [PLAIN, WINDOWED, SHARED, CONV])
def test_a_compiled_model_and_cached_decoding_agree_with_the_plain_forward(section):
    run([sys.executable, "-c", COMPILED, section], on_gpu=True)
