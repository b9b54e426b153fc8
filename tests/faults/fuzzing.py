"""Every parser of outside input, and what it may do with a damaged file: read it, or refuse it by its name.

    parsers = parsers_of(Corpus(folder))
    outcome = Trial(parsers[0]).of(content)         "read", "refused", or what went wrong: a finding

A finding is an exception that is no `UserError`, a message without the file's name or of more than 4,000 characters,
more than two seconds, or more than 200 MB of memory over the start.
"""

import json
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from data_prep.journal import Journal, differences, was_prepared
from data_prep.sources.files import local_files
from dsllm.comparison.study import Study
from dsllm.config import MonitorConfig, RunConfig, TrainConfig
from dsllm.data.dataset import TokenDataset
from dsllm.data.indexed import IndexedPair
from dsllm.data.manifest import Manifest
from dsllm.data.problems import ProblemDataset, chance_of
from dsllm.data.shards import open_split
from dsllm.data.verify import verify_folder
from dsllm.errors import UserError
from dsllm.models.adapters import load_adapters
from dsllm.store import TensorStore
from dsllm.tokenizer import load_tokenizer
from dsllm.training.checkpoints import Checkpoint
from dsllm.training.deepspeed_env import read_deepspeed_env
from dsllm.training.ds_config import merge, read_ds_config
from dsllm.training.growth_state import Event
from dsllm.training.hostfile import read_hostfile
from dsllm.training.marker import MARKER, sealed
from dsllm.training.monitor import METRICS, Monitor, damaged_lines
from dsllm.training.offline import read_plan
from dsllm.training.probe import Probe
from dsllm.training.progress import Progress
from tests.faults.corpus import BASE, Corpus, as_by_an_older_dsllm
from tests.faults.mutations import Mutation, of_bytes, of_json, of_lines, of_text, of_yaml

LONGEST = 4000
MOST_SECONDS = 2.0
MOST_BYTES = 200 * 2**20


@dataclass
class Parser:
    """What reads one kind of file."""

    name: str
    file: Path
    """A valid one, in whose place the damaged ones are put."""
    change: Mutation
    read: Callable[[], object]
    named: tuple[str, ...] = ()
    """One of these has to be in a refusal; the file's name by default."""
    share: float = 1.0
    """Of inputs, compared with other parsers."""
    exact: bool = False
    """Whether checksums vouch for every byte: then another file than the valid one is never read."""
    written: Callable[[bytes], bytes] = bytes
    """What is done to a damaged content before it is written."""
    valid: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.valid = self.file.read_bytes()
        self.named = self.named or (self.file.name,)

    def inputs(self, seed: int, count: int) -> Iterator[bytes]:
        """Damaged contents by the seed."""
        rng = random.Random(f"{self.name} {seed}")
        for _ in range(count):
            yield self.change(self.valid, rng)


def parsers_of(corpus: Corpus) -> list[Parser]:
    """All of them, around the files of a corpus."""
    folder, data, checkpoint = corpus.folder, corpus.data, corpus.checkpoint
    variables, index, tokenizer = folder / ".deepspeed_env", checkpoint / "tensors.json", corpus.tokenizer
    weight = next(iter(TensorStore.read(checkpoint).entries.values()))
    known = Checkpoint.read(checkpoint)
    pair = ("train_00000",)
    return [
        Parser(".idx", data / "train_00000.idx", of_bytes, lambda: _read_pair(data / "train_00000"), pair, 2),
        Parser(".bin", data / "train_00000.bin", of_bytes, lambda: _read_samples(data), (*pair, "data"), 2),
        Parser("labels .idx", corpus.problems / "train_00000.labels.idx", of_bytes, lambda: _problems(corpus), pair),
        Parser("manifest.json", data / "manifest.json", of_json, lambda: _read_folder(data), ("data",)),
        Parser("llm.c", corpus.llmc / "train_00000.bin", of_bytes, lambda: _read_foreign(corpus.llmc), share=2),
        Parser("nanoGPT", folder / "nanogpt.bin", of_bytes, lambda: _read_foreign(folder / "nanogpt.bin")),
        Parser("configuration", corpus.recipe, of_yaml, lambda: RunConfig.from_file(corpus.recipe), _CONFIG),
        Parser("overrides", corpus.recipe, _of_overrides, lambda: None, _CONFIG, 0.5, written=bytes),
        Parser("study", folder / "study.yaml", of_yaml, lambda: Study.read(folder / "study.yaml"), share=0.4),
        Parser("hostfile", folder / "hosts", of_text, lambda: read_hostfile(folder / "hosts")),
        Parser(".deepspeed_env", variables, of_text, lambda: read_deepspeed_env(variables)),
        Parser("DeepSpeed's JSON", folder / "ds.json", of_json, lambda: _read_ds(folder / "ds.json")),
        Parser(
            "marker", checkpoint / MARKER, of_json, lambda: Checkpoint.read(checkpoint),
            (checkpoint.name,), share=0.5, exact=True,
        ),
        Parser(
            "marker, sealed anew", checkpoint / MARKER, of_json, lambda: _read_checkpoint(checkpoint),
            (checkpoint.name,), written=_sealed,
        ),
        Parser(
            "marker by an older dsllm", checkpoint / MARKER, of_json, lambda: Checkpoint.read(checkpoint),
            (checkpoint.name,), written=_unsealed,
        ),
        Parser("tensors.json", index, of_json, lambda: _read_store(checkpoint), (checkpoint.name,)),
        Parser(".npy", checkpoint / weight.file, of_bytes, lambda: _read_store(checkpoint), exact=True),
        Parser("metrics.jsonl", corpus.run / METRICS, of_lines, lambda: _read_metrics(corpus.run)),
        Parser("growth plan", folder / "plan.json", of_json, lambda: read_plan(folder / "plan.json", known)),
        Parser(
            "growth event", corpus.run / "growth" / "step_00000100.01" / "event.json", of_json,
            lambda: Event.read(corpus.run, "step_00000100.01"),
        ),
        Parser("probe", folder / "probe.npz", of_bytes, lambda: Probe.load(folder / "probe.npz")),
        Parser("journal.json", corpus.unfinished / "journal.json", of_json, lambda: _read_journal(corpus.unfinished)),
        Parser("tokenizer.json", tokenizer / "tokenizer.json", of_json, lambda: _read_tokenizer(tokenizer)),
        Parser(
            "tokenizer_config.json", tokenizer / "tokenizer_config.json", of_json,
            lambda: _read_tokenizer(tokenizer),
        ),
        Parser(
            "adapters", folder / "adapters.safetensors", of_bytes,
            lambda: load_adapters(corpus.adapted, folder / "adapters.safetensors", BASE),
        ),
    ]  # fmt: skip


_CONFIG = ("recipe.yaml", "configuration")


class Trial:
    """One parser, tried with one input after the other; the valid file is put back by `end`."""

    def __init__(self, parser: Parser):
        self.parser = parser
        self.read = self.refused = 0
        self.findings: dict[str, bytes] = {}
        """In words, each with the first input that shows it."""
        self.found = 0
        self.slowest = 0.0
        """Seconds."""
        self.peak = 0
        """Bytes over those before an input."""

    def of(self, content: bytes) -> str:
        """What becomes of an input."""
        outcome = self._outcome(content)
        self.read += outcome == "read"
        self.refused += outcome == "refused"
        if outcome not in ("read", "refused"):
            self.found += 1
            self.findings.setdefault(outcome, content)
        return outcome

    def _outcome(self, content: bytes) -> str:
        parser = self.parser
        parser.file.write_bytes(parser.written(content))
        _forget_peak()
        start, begun = _memory("VmRSS"), process_time()
        try:
            if parser.name == "overrides":
                RunConfig.from_file(parser.file, [_override(content)])
            else:
                parser.read()
            outcome = "read" if content == parser.valid or not parser.exact else "read although it was changed"
        except UserError as error:
            outcome = _refusal(str(error), parser.named)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # pyo3's panics are none of `Exception`
            where = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in where if "/dsllm/" in frame.filename or "/data_prep/" in frame.filename]
            place = f"{Path(ours[-1].filename).name}, {ours[-1].name}" if ours else "?"
            outcome = f"{type(error).__name__} in {place}: {str(error)[:100]!r}"
        seconds = process_time() - begun
        self.slowest = max(self.slowest, seconds)
        peak = _memory("VmHWM") - start
        self.peak = max(self.peak, peak)
        if seconds > MOST_SECONDS:
            outcome = "more than 2 s"
        if peak > MOST_BYTES:
            outcome = "more than 200 MB"
        return outcome

    def end(self) -> None:
        self.parser.file.write_bytes(self.parser.valid)


def _refusal(message: str, named: tuple[str, ...]) -> str:
    if len(message) > LONGEST:
        return "a message of more than 4,000 characters"
    return (
        "refused" if any(name in message for name in named) else f"a message without the file's name: {message[:100]}"
    )


def _memory(which: str) -> int:
    """Bytes: VmRSS, of now, or VmHWM, the most since `_forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{which}:")[2].split(maxsplit=1)[0]) * 1024


def _forget_peak() -> None:
    with suppress(OSError):  # a system that does not let us: then the peak is that of the process
        Path("/proc/self/clear_refs").write_text("5")


# What is done with a file that could be read: everything that a command would do before it trusts it.


def _read_pair(prefix: Path) -> None:
    pair = IndexedPair(prefix)
    for i in range(len(pair)):
        assert len(pair.document(i))
    pair.starts_between(0, len(pair.tokens))
    assert len(pair.document_starts) == len(pair) and len(pair.offsets) == len(pair.sizes)


def _read_samples(data: Path) -> None:
    samples = TokenDataset(data, "train", context=16)
    for i in range(len(samples)):
        assert samples.sample(i).shape == (17,)
        assert samples.document_ids(i).shape == (16,)


def _problems(corpus: Corpus) -> None:
    problems = ProblemDataset(corpus.problems, "train", context=16)
    for i in range(len(problems)):
        problems.sample(i), problems.labels(i), problems.document_ids(i)
    assert len(problems.lengths) == len(problems)


def _read_folder(data: Path) -> None:
    manifest = Manifest.read(data)
    chance_of(data)
    verify_folder(data)
    for split in manifest.splits:
        open_split(data, split)


def _read_foreign(path: Path) -> None:
    samples = TokenDataset(path, "train", context=16)
    for i in range(len(samples)):
        samples.sample(i)
    for shard in open_split(path, "train").shards:
        if getattr(shard, "end_of_text", None) is not None:
            assert (np.diff(shard.starts_between(0, len(shard.tokens))) > 0).all()


def _read_ds(path: Path) -> None:
    merge(read_ds_config(path), TrainConfig(ds_config=path), 1, "fp32", "cpu")


def _read_checkpoint(path: Path) -> None:
    checkpoint = Checkpoint.read(path)
    checkpoint.config()
    checkpoint.origin.tokenizer.same_as(checkpoint.origin.tokenizer)
    assert checkpoint.progress.step + checkpoint.progress.tokens is not None


def _read_store(path: Path) -> None:
    store = TensorStore.read(path)
    store.verify(store.entries.values())
    store.digest()
    for name in store.aliases:
        assert store["weight", name] is not None


def _read_metrics(run: Path) -> None:
    damaged_lines(run)
    Monitor(run, MonitorConfig(tensorboard=False), Progress(step=3, tokens=300), steps=4).close()


def _read_journal(folder: Path) -> None:
    was_prepared(folder)
    journal = Journal.read(folder)
    assert journal is not None and all(count >= 0 for count in journal.counts.values())
    differences(journal.manifest, journal.manifest)
    list(local_files(str(folder / "a.txt"), ("text",)).documents(journal.position))


def _read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.decode(tokenizer.encode("the theory of a thing ∑"))
    assert tokenizer.token_bytes().shape == (tokenizer.size,)
    assert tokenizer.info.size > tokenizer.end_of_text


# Two kinds of input that are more than the bytes of a file.


def _sealed(content: bytes) -> bytes:
    """A marker that vouches for what it says, so that the checks behind its checksum are met."""
    try:
        facts = json.loads(content)
        return sealed({key: value for key, value in facts.items() if key != "checksum"})
    except (ValueError, RecursionError, AttributeError):
        return content


def _unsealed(content: bytes) -> bytes:
    try:
        return json.dumps(as_by_an_older_dsllm(json.loads(content))).encode()
    except (ValueError, RecursionError, AttributeError):
        return content


MARK = b"\n# on the command line: "
OVERRIDES = ("model.n_layer=3", "train.lr=1.0e-3", "growth.policy={name: schedule, at: [0.5]}", "data.path=[a, b]")


def _of_overrides(content: bytes, rng: random.Random) -> bytes:
    """The configuration with, as its last line, a damaged word of the command line."""
    return content + MARK + of_text(rng.choice(OVERRIDES).encode(), rng).replace(b"\n", b"").replace(b"\0", b"")


def _override(content: bytes) -> str:
    return (content.partition(MARK)[2] or OVERRIDES[1].encode()).decode(errors="surrogateescape")


def table(trials: list[Trial]) -> str:
    """What was tried, as Markdown."""
    rows: list[list[Any]] = [["parser", "inputs", "refused", "read", "findings", "most ms", "peak MB"]]
    rows.append(["---", *["---:"] * 6])
    for trial in trials:
        inputs = trial.read + trial.refused + trial.found
        ms, peak = f"{1000 * trial.slowest:,.0f}", f"{max(trial.peak, 0) / 2**20:,.0f}"
        rows.append([trial.parser.name, f"{inputs:,}", f"{trial.refused:,}", f"{trial.read:,}", trial.found, ms, peak])
    total = [
        sum(of)
        for of in zip(*((t.read + t.refused + t.found, t.refused, t.read, t.found) for t in trials), strict=True)
    ]
    slowest, peak = max(t.slowest for t in trials), max(t.peak for t in trials)
    rows.append(["all", *(f"{count:,}" for count in total), f"{1000 * slowest:,.0f}", f"{peak / 2**20:,.0f}"])
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n"
