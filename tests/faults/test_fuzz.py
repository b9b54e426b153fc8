"""Whatever is in a file, reading it ends: with what it says, or with a message that names it."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsllm.data.indexed import IndexedPair, IndexedWriter
from dsllm.json_file import parse_json
from dsllm.store import TensorStore, write_tensor
from dsllm.training.marker import Marker, sealed
from tests.faults.corpus import Corpus
from tests.faults.fuzzing import Trial, parsers_of

INPUTS = 300
NAMES = [
    ".idx", ".bin", "labels .idx", "manifest.json", "llm.c", "nanoGPT", "configuration", "overrides", "study",
    "hostfile", ".deepspeed_env", "DeepSpeed's JSON", "marker", "marker, sealed anew", "marker by an older dsllm",
    "tensors.json",
    ".npy", "metrics.jsonl", "growth plan", "growth event", "probe", "journal.json", "tokenizer.json",
    "tokenizer_config.json", "adapters",
]  # fmt: skip
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)


@pytest.fixture(scope="module")
def parsers(tmp_path_factory):
    found = parsers_of(Corpus(tmp_path_factory.mktemp("corpus")))
    return {parser.name: parser for parser in found}


@pytest.fixture
def trial(parsers, request):
    trial = Trial(parsers[request.param])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield trial
    trial.end()


def test_every_parser_is_tried(parsers):
    assert list(parsers) == NAMES


@pytest.mark.parametrize(
    "trial",
    NAMES,
    indirect=True,
)
def test_the_file_of_the_corpus_is_read_and_a_damaged_one_is_read_or_refused(trial):
    assert trial.of(trial.parser.valid) == "read"
    for content in trial.parser.inputs(seed=0, count=int(INPUTS * min(1.0, trial.parser.share))):
        trial.of(content)
    assert trial.findings == {}


@pytest.mark.parametrize("trial", NAMES, indirect=True)
@SETTINGS
@given(content=st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(trial, content):
    assert trial.of(content) in ("read", "refused")


@pytest.mark.parametrize("trial", [name for name in NAMES if "json" in name or "marker" in name], indirect=True)
@SETTINGS
@given(value=JSON)
def test_any_json_is_read_or_refused(trial, value):
    assert trial.of(json.dumps(value).encode()) in ("read", "refused")


SHAPES = st.lists(st.integers(0, 4), max_size=4)
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
)


@SETTINGS
@given(shape=SHAPES, dtype=DTYPES)
def test_tensors_of_any_shape_and_type_come_back_from_a_store(tmp_path, shape, dtype):
    tensor = (10 * torch.rand(shape)).to(dtype)
    entry = write_tensor(tmp_path, "weight", "a", tensor)
    TensorStore.of(tmp_path, [entry], {}, {}).finish()
    store = TensorStore.read(tmp_path)
    store.verify(store.entries.values())
    assert store["weight", "a"].equal(tensor.float() if dtype.is_floating_point else tensor)


@SETTINGS
@given(facts=st.dictionaries(st.text(max_size=10), JSON, max_size=5))
def test_a_sealed_marker_says_what_it_was_given(tmp_path, facts):
    facts |= {key: {} for key in ("progress", "origin", "asked", "state", "files", "sha256")}
    facts.pop("checksum", None)
    (tmp_path / "COMPLETE").write_bytes(sealed(facts))
    assert json.dumps(Marker.read(tmp_path).facts) == json.dumps(parse_json(json.dumps(facts)))


@SETTINGS
@given(documents=st.lists(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=9), min_size=1, max_size=9))
def test_any_documents_come_back_from_a_pair(tmp_path: Path, documents):
    with IndexedWriter(tmp_path / "pair", "u2") as writer:
        for document in documents:
            writer.add(np.array(document))
        writer.finish()
    pair = IndexedPair(tmp_path / "pair")
    assert [pair.document(i).tolist() for i in range(len(pair))] == documents
