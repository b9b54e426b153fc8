"""A changed byte is found, a name leads nowhere but into its folder, and no file makes its reader run anything."""

import ast
import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import data_prep
import dsllm
from dsllm import load_model
from dsllm.config import RunConfig
from dsllm.data.manifest import Manifest
from dsllm.data.shards import open_split
from dsllm.data.verify import verify_folder
from dsllm.errors import CheckpointError, ConfigError, DataError, UserError
from dsllm.store import TensorStore
from dsllm.tokenizer import tokenizer_of
from dsllm.training.checkpoints import Checkpoint, find_checkpoint
from dsllm.training.growth_state import Event, GrowthState
from dsllm.training.hostfile import read_hostfile
from dsllm.training.loading import load_tokenizer_of
from dsllm.training.marker import MARKER
from dsllm.training.offline import grow, plan_growth
from dsllm.training.probe import Probe
from dsllm.training.verify import verify_checkpoint
from tests.data.folders import documents, write_folder
from tests.faults.corpus import Corpus, as_by_an_older_dsllm, write_checkpoint
from tests.sealing import reseal

FLIPS = 2
"""Of each file, at random bytes, besides the first and the last."""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "run", 100)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flipped(file: Path, rng: random.Random):
    """Flips one bit after the other in a file, and puts it back."""
    content = file.read_bytes()
    for at in [0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(FLIPS))]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        yield at
    file.write_bytes(content)


def test_one_flipped_bit_in_any_file_of_a_checkpoint_is_found_by_verify_and_named(checkpoint):
    assert verify_checkpoint(checkpoint).problems == []
    rng = random.Random(1)
    for file in files_of(checkpoint):
        for at in flipped(file, rng):
            problems = verify_checkpoint(checkpoint).problems
            assert len(problems) == 1 and str(file) in problems[0], (file, at, problems)
    assert verify_checkpoint(checkpoint).problems == []


def test_one_flipped_bit_in_any_file_that_a_resuming_run_reads_stops_it(checkpoint):
    rng = random.Random(2)
    for file in files_of(checkpoint):
        for _ in flipped(file, rng):
            with pytest.raises(CheckpointError) as refused:  # the three steps by which `BaseTrainer` takes it over
                store = Checkpoint.read(checkpoint).store()
                store.verify(store.entries.values())
            assert str(file) in str(refused.value)


def test_one_flipped_bit_in_any_weight_or_file_beside_them_is_found_when_the_model_is_loaded(checkpoint):
    load_model(checkpoint)
    rng = random.Random(3)
    for file in files_of(checkpoint):
        if file.parent.name not in ("exp_avg", "exp_avg_sq"):  # which nobody but training reads
            for _ in flipped(file, rng):
                with pytest.raises(CheckpointError) as refused:
                    load_model(checkpoint)
                assert str(file) in str(refused.value)


def test_a_header_that_says_another_type_is_found_though_the_values_are_the_same(checkpoint):
    file = checkpoint / "weight" / "wte.weight.npy"
    file.write_bytes(file.read_bytes().replace(b"<f4", b"<i4", 1))
    with pytest.raises(CheckpointError, match=r"wte\.weight\.npy: cannot be read .*header .* remove the folder"):
        load_model(checkpoint)


def test_growing_refuses_a_checkpoint_with_a_flipped_bit(checkpoint, tmp_path):
    plan = plan_growth(Checkpoint.read(checkpoint), "interpose")
    file = checkpoint / "exp_avg" / "wte.weight.npy"
    for _ in flipped(file, random.Random(4)):
        with pytest.raises(CheckpointError) as refused:
            grow(Checkpoint.read(checkpoint), plan, tmp_path / "out")
        assert str(file) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_by_an_older_dsllm_is_read_and_verify_says_what_it_cannot_know(checkpoint):
    marker = json.loads((checkpoint / MARKER).read_text())
    (checkpoint / MARKER).write_text(json.dumps(as_by_an_older_dsllm(marker)))
    index = json.loads((checkpoint / "tensors.json").read_text())
    for entry in index["entries"]:
        del entry["dtype"]
    (checkpoint / "tensors.json").write_text(json.dumps(index))
    assert "tensors.json" in verify_checkpoint(checkpoint).problems[0]  # of another size: not what the marker says
    marker["files"]["tensors.json"] = (checkpoint / "tensors.json").stat().st_size
    (checkpoint / MARKER).write_text(json.dumps(as_by_an_older_dsllm(marker)))
    load_model(checkpoint)
    verdict = verify_checkpoint(checkpoint)
    assert verdict.problems == [] and "of an older dsllm" in str(verdict)


def test_a_marker_that_was_edited_by_hand_is_refused(checkpoint):
    marker = json.loads((checkpoint / MARKER).read_text())
    marker["progress"]["step"] = 101
    (checkpoint / MARKER).write_text(json.dumps(marker, indent=2))
    with pytest.raises(CheckpointError, match=r"COMPLETE: cannot be read .*damaged, edited or of another version"):
        Checkpoint.read(checkpoint)


def test_one_flipped_bit_in_any_file_of_a_data_folder_is_found_by_verify(tmp_path):
    folder = Corpus(tmp_path).problems  # with streams beside the tokens
    assert verify_folder(folder).problems == []
    rng = random.Random(5)
    for file in files_of(folder):
        if file.suffix in (".bin", ".idx"):
            for at in flipped(file, rng):
                assert any(str(file) in problem for problem in verify_folder(folder).problems), (file, at)


# Names.

OUTSIDE = ["../evil", "/etc/passwd", "..", ".", "", "a/../../b", "a\0b", "\ud800", 3, None]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_tensors_name_that_leads_outside_is_refused(checkpoint, name):
    index = json.loads((checkpoint / "tensors.json").read_text())
    index["entries"][0]["name"] = name
    (checkpoint / "tensors.json").write_text(json.dumps(index))
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match=r"tensors\.json: cannot be read"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("part", "value"), [("kind", "../weight"), ("kind", ["weight"]), ("dtype", "O"), ("dtype", "<f8")]
)
def test_a_tensors_kind_or_type_that_is_none_is_refused(checkpoint, part, value):
    index = json.loads((checkpoint / "tensors.json").read_text())
    index["entries"][0][part] = value
    (checkpoint / "tensors.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"tensors\.json: cannot be read"):
        TensorStore.read(checkpoint)


def test_an_alias_of_no_tensor_is_refused(checkpoint):
    index = json.loads((checkpoint / "tensors.json").read_text())
    index["aliases"]["head.weight"] = "../wte.weight"
    (checkpoint / "tensors.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'\.\./wte\.weight', which is no tensor of it"):
        TensorStore.read(checkpoint)


@pytest.mark.parametrize("name", [name for name in OUTSIDE if isinstance(name, str)])
def test_a_markers_file_that_lies_outside_is_refused(checkpoint, name):
    marker = json.loads((checkpoint / MARKER).read_text())
    reseal(checkpoint, files={**marker["files"], name: 5})
    with pytest.raises(CheckpointError, match="no name of a file in this folder"):
        Checkpoint.read(checkpoint)


@pytest.mark.parametrize("name", ["weight/wte.weight.npy", "config.yaml", "tensors.json", MARKER])
def test_a_link_out_of_a_checkpoint_is_refused_and_a_link_to_the_checkpoint_is_not(checkpoint, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").symlink_to(checkpoint)
    load_model(tmp_path / "linked")
    shutil.move(checkpoint / name, tmp_path / "elsewhere" / "file")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere" / "file")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        load_model(checkpoint)


@pytest.mark.parametrize("key", ["name", "split"])
@pytest.mark.parametrize("name", [".", "..", "../train_00000", "/train_00000", "a/b", "", "a\n", "a\0"])
def test_a_shards_name_that_leads_outside_is_refused(tmp_path, key, name):
    folder = write_folder(tmp_path / "data", {"train": [documents(0, 3)]})
    record = json.loads((folder / "manifest.json").read_text())
    record["shards"][0][key] = name
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"manifest\.json: not a manifest \(shards\.0\.{key}"):
        Manifest.read(folder)


def test_a_streams_name_that_leads_outside_is_refused(tmp_path):
    folder = write_folder(tmp_path / "data", {"train": [documents(0, 3)]})
    record = json.loads((folder / "manifest.json").read_text())
    record["shards"][0]["parallel"] = {"../../labels": {"bin_sha256": "a" * 64, "idx_sha256": "a" * 64}}
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="not a manifest"):
        Manifest.read(folder)


@pytest.mark.parametrize("foreign", [False, True], ids=["data folder", "files without a manifest"])
def test_a_shard_that_is_a_link_out_of_its_folder_is_refused_and_one_within_is_read(tmp_path, foreign):
    folder = write_folder(tmp_path / "data", {"train": [documents(0, 9)]})
    if foreign:
        (folder / "manifest.json").unlink()
    (folder / "train_00000.bin").rename(folder / "content")
    (folder / "train_00000.bin").symlink_to("content")
    open_split(folder, "train")
    (tmp_path / "linked").symlink_to(folder)
    open_split(tmp_path / "linked", "train")
    (folder / "content").rename(tmp_path / "content")
    (folder / "train_00000.bin").unlink()
    (folder / "train_00000.bin").symlink_to(tmp_path / "content")
    with pytest.raises(DataError, match=r"train_00000\.bin: leads out of its folder"):
        open_split(folder, "train")
    if not foreign:
        assert any("leads out of its folder" in problem for problem in verify_folder(folder).problems)


def test_a_tokenizer_that_a_file_names_is_no_file_elsewhere(tmp_path, checkpoint):
    corpus = Corpus(tmp_path / "corpus")
    elsewhere = str(corpus.tokenizer / "tokenizer.json")
    record = json.loads((corpus.data / "manifest.json").read_text())
    record["tokenizer"]["name"] = elsewhere
    (corpus.data / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="no such tokenizer"):
        tokenizer_of(corpus.data)
    marker = json.loads((checkpoint / MARKER).read_text())
    reseal(checkpoint, origin={**marker["origin"], "tokenizer": {**marker["origin"]["tokenizer"], "name": elsewhere}})
    with pytest.raises(DataError, match="no such tokenizer"):
        load_tokenizer_of(find_checkpoint(checkpoint))


@pytest.mark.parametrize("name", ["../../x", "step_1", "/tmp/x", 3, "step_00000100/.."])
def test_a_growth_event_names_no_checkpoint_elsewhere(tmp_path, name):
    folder = tmp_path / "growth" / "step_00000100.01"
    folder.mkdir(parents=True)
    facts = {"name": "step_00000100.01", "source": name, "started": 1.0, "process": "", "seconds": {}}
    (folder / "event.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"event\.json: cannot be read .*no name of a checkpoint"):
        Event.read(tmp_path, "step_00000100.01")
    race = {"origin": name, "phase": "full", "candidates": [], "until": 3}
    with pytest.raises(CheckpointError, match="no name of a checkpoint"):
        GrowthState.from_dict({**GrowthState().as_dict(), "race": race})


# Code.


class Runs:
    """Pickled, it makes whoever unpickles it write a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.write_text, (self.trace, "ran")


def test_a_tensor_that_is_a_pickle_is_refused_and_does_not_run(checkpoint, tmp_path):
    file, trace = checkpoint / "weight" / "wte.weight.npy", tmp_path / "trace"
    size = file.stat().st_size
    with file.open("wb") as output:
        np.lib.format.write_array(output, np.array([Runs(trace)], dtype=object), allow_pickle=True)
    file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    assert "1 damaged file" in str(verify_checkpoint(checkpoint))
    with pytest.raises(CheckpointError, match=r"wte\.weight\.npy"):
        load_model(checkpoint)
    assert not trace.exists()


@pytest.mark.parametrize("content", ["pickle", "npy", "npz"])
def test_a_probe_that_is_a_pickle_is_refused_and_does_not_run(tmp_path, content):
    file, trace = tmp_path / "probe.npz", tmp_path / "trace"
    if content == "pickle":
        file.write_bytes(pickle.dumps(Runs(trace)))
    else:
        with file.open("wb") as output:
            save = np.savez if content == "npz" else np.save
            save(output, np.array([Runs(trace)], dtype=object))
    with pytest.raises(CheckpointError, match=r"probe\.npz: cannot be read"):
        Probe.load(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:pathlib.Path.touch [{}]", "!!python/name:os.system", "!!python/module:antigravity"]
)
def test_a_configuration_with_a_python_object_is_refused_and_does_not_run(tmp_path, value):
    path = tmp_path / "a.yaml"
    path.write_text(f"run_dir: {value.format(tmp_path / 'trace')}\ndata: {{path: x}}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: not YAML"):
        RunConfig.from_file(path)
    assert not (tmp_path / "trace").exists()


def test_a_host_that_ssh_would_take_for_an_option_is_refused(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("-oProxyCommand=touch${IFS}trace slots=8\n")
    with pytest.raises(UserError, match="line 1 is"):
        read_hostfile(path)


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_nothing_in_the_packages_unpickles_evaluates_or_loads_yaml_with_objects():
    for package in (dsllm, data_prep):
        for file in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                    assert not UNSAFE & {name.partition(".")[0] for name in names}, file
                if isinstance(node, ast.Call):
                    _check_call(node, ast.unparse(node.func), file)


def _check_call(node: ast.Call, called: str, file: Path) -> None:
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load"), (
        file,
        called,
    )
    if called == "np.load":
        assert options.get("allow_pickle") == "False", file
    if called.endswith("from_pretrained"):
        assert options.get("trust_remote_code", "False") == "False", file
