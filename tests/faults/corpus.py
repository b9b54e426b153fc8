"""One small valid file of each kind that dsllm reads, made by the writers themselves, in the folder that it belongs to.

corpus = Corpus(folder)
corpus.data / "manifest.json", corpus.checkpoint / "COMPLETE", …
"""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.journal import JOURNAL_NAME, Journal
from dsllm import build_model
from dsllm.config import MonitorConfig, RunConfig
from dsllm.data.foreign import write_llmc, write_nanogpt
from dsllm.data.manifest import Manifest
from dsllm.models.adapters import save_adapters
from dsllm.store import MOMENTS, TensorStore, write_tensor
from dsllm.tokenizer import load_tokenizer
from dsllm.training.checkpoints import Checkpoint, Origin, Snapshot, complete
from dsllm.training.growth_state import Event
from dsllm.training.monitor import Monitor
from dsllm.training.offline import plan_growth, write_plan
from dsllm.training.probe import Probe
from dsllm.training.progress import Progress
from tests.data.folders import documents, write_folder, write_shard

MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 8, "context": 16, "vocab_size": 64}
BASE = "base"
HOSTS = "# ours\nnode1 slots=8\nnode2\tslots=4 # half\n\nuser@10.0.0.7 slots=16 max_slots=16\n"
VARIABLES = "OMP_NUM_THREADS=8\nNCCL_DEBUG=WARN\nA=b=c\n"
STUDY = """
base: {base}
set: {{train: {{steps: 400, eval_every: 50}}}}
seeds: [1, 2, 3]
rates: [2.0e-3, 4.0e-3]
flops: [1.0e+13, 2.0e+13]
further: {{gpt2: [4.0e+13]}}
arms:
  gpt2: {{}}
  windowed: {{model: &w {{positions: rotary, window: 64}}}}
  grown: {{model: {{name: progressive, n_layer: 3}}, growth: {{preset: no_diverge}}}}
"""


class Corpus:
    """The files, below one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        torch.manual_seed(0)  # so that the same seed makes the same inputs
        shards = {"train": [documents(0, 12), documents(1, 5)], "val": [documents(2, 3)]}
        self.data = write_folder(folder / "data", shards)
        self.llmc = folder / "llmc"
        self.llmc.mkdir()
        write_llmc(self.data, "train", self.llmc)
        write_nanogpt(self.data, "val", folder / "nanogpt.bin")
        self.problems = _problems(folder / "problems")
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(Path("launch/recipes/origin_progressive.yaml").read_text())
        (folder / "study.yaml").write_text(STUDY.format(base=Path("launch/recipes/demo_gpt2.yaml").resolve()))
        (folder / "hosts").write_text(HOSTS)
        (folder / ".deepspeed_env").write_text(VARIABLES)
        (folder / "ds.json").write_text(Path("ds_configs/zero3_offload.json").read_text())
        self.run = folder / "run"
        self.checkpoint = write_checkpoint(self.run, 100)
        _records(self.run)
        write_plan(plan_growth(Checkpoint.read(self.checkpoint), "interpose"), folder / "plan.json")
        event = Event("step_00000100.01", "step_00000100", 1.7e9, "4711 1.0", {"probe": 0.5})
        event.folder(self.run).mkdir(parents=True)
        event.write(self.run)
        Probe(2.5, torch.randn(3, 64), 8, 2, {"device": "cpu"}).save(folder / "probe.npz")
        self.unfinished = _journal(folder / "unfinished")
        self.tokenizer = _tokenizer(folder / "tokenizer")
        self.adapted = build_model(RunConfig.from_values(values(name="progressive", lora={"rank": 2})).model)
        save_adapters(self.adapted, folder / "adapters.safetensors", BASE)


def values(**model: Any) -> dict[str, Any]:
    """The configuration of a very small run."""
    return {"run_dir": "runs/tiny", "data": {"path": "data/tiny"}, "model": {**MODEL, **model}}


def write_checkpoint(run: Path, step: int, **model: Any) -> Path:
    """A complete checkpoint as training writes it, of a model that has not trained."""
    config = RunConfig.from_values(values(**model))
    path = run / "checkpoints" / f"step_{step:08d}"
    built = build_model(config.model)
    entries = []
    for name, parameter in built.named_parameters():
        entries.append(write_tensor(path, "weight", name, parameter))
        entries += [write_tensor(path, kind, name, torch.rand(parameter.shape)) for kind in MOMENTS]
    known = {id(parameter): name for name, parameter in built.named_parameters()}
    names = built.named_parameters(remove_duplicate=False)
    aliases = {name: known[id(parameter)] for name, parameter in names if known[id(parameter)] != name}
    store = TensorStore.of(path, entries, aliases, dict.fromkeys(known.values(), step))
    order = {"train.seed": 1, "data.path (checksums)": ["abc"]}
    origin = Origin(1, 0, "fp32", load_tokenizer("bytes").info, order)
    asked = config.model.model_dump(mode="json")
    progress = Progress(step=step, tokens=1000 * step, flops=1e6)
    complete(store, Snapshot(progress, origin, config, asked, {"trainer": {}, "scaler": {}, "guard": {}}))
    return path


def _problems(folder: Path) -> Path:
    """A folder with streams beside the tokens, of which labels may be negative."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    docs = [np.append(rng.integers(0, 300, 5), 300) for _ in range(6)]
    shard = write_shard(folder, "train", 0, docs)
    beside = {}
    for name, dtype in (("labels", "i4"), ("depths", "u2")):
        info = write_shard(folder, "x", 0, [np.where(doc == 300, 1, doc) for doc in docs], dtype)
        for suffix in ("bin", "idx"):
            (folder / f"x_00000.{suffix}").rename(folder / f"train_00000.{name}.{suffix}")
        beside[name] = {"bin_sha256": info.bin_sha256, "idx_sha256": info.idx_sha256}
    manifest = Manifest.read(write_folder(folder, {}))
    shard = type(shard).model_validate({**shard.model_dump(), "parallel": beside})
    manifest.model_copy(update={"shards": [shard]}).write(folder)
    return folder


def _records(run: Path) -> None:
    monitor = Monitor(run, MonitorConfig(tensorboard=False), Progress(), steps=4)
    for step in range(1, 5):
        progress = Progress(step=step, tokens=100 * step)
        monitor.record("train", progress, {"loss": 2.0, "lr": 0.1, "step_seconds": 0.5})
        monitor.record("eval", progress, {"split": "val", "loss": 2.1})
        monitor.record("growth", progress, {"checkpoint": "step_00000002.01", "plan": "ab", "seconds": {"a": 1.0}})
        monitor.event(progress, "start", note=None)
    monitor.close()


def _journal(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("some text\n")
    manifest = Manifest.read(write_folder(folder, {"train": [documents(3, 4)]}, complete=False))
    source = {"source": str(folder), "fields": None, "counts": {"read": 1, "empty": 0, "skipped": 0}}
    journal = Journal(
        manifest=manifest.model_copy(update={"source": source}), position={"file": 1, "record": 0}, sets=1
    )
    journal.write(folder)
    assert (folder / JOURNAL_NAME).exists()
    return folder


def _tokenizer(folder: Path) -> Path:
    folder.mkdir()
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    backend.train_from_iterator(["the theory of the thing", "a thing or two"], trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}, "model_max_length": 16}')
    return folder


def as_by_an_older_dsllm(marker: dict[str, Any]) -> dict[str, Any]:
    """A marker without what vouches for its text."""
    return {key: value for key, value in marker.items() if key not in ("sha256", "checksum")}
