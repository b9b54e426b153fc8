"""What once ended in a traceback, a hang or worse, each with the input that showed it."""

import json
import time

import numpy as np
import pytest

from data_prep.journal import Journal
from data_prep.sources.files import local_files
from dsllm.comparison.record import RunRecord
from dsllm.config import MonitorConfig, RunConfig
from dsllm.data.indexed import IndexedPair, IndexedWriter
from dsllm.data.manifest import Manifest
from dsllm.errors import LONGEST_MESSAGE, CheckpointError, ConfigError, DataError, UserError
from dsllm.growth.plan import GrowthPlan
from dsllm.models.adapters import load_adapters
from dsllm.store import TensorStore
from dsllm.tokenizer import load_tokenizer
from dsllm.training.growth_state import Event
from dsllm.training.hostfile import read_hostfile
from dsllm.training.monitor import METRICS, Monitor, damaged_lines, read_metrics
from dsllm.training.probe import Probe
from dsllm.training.progress import Progress
from tests.faults.corpus import BASE, Corpus

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        (tmp_path / "a.yaml").write_text(text)
        return tmp_path / "a.yaml"

    return write


@pytest.mark.parametrize(
    "text",
    [
        "train: {lr: 2001-13-41}", "train: {lr: !!timestamp x}", "train: {lr: !!bool maybe}", 'train: {lr: !!int ""}',
        f"train: {{steps: {'9' * 5000}}}", "train: &a [*a]", 'run_dir: "a\\0b"', 'run_dir: "\\ud800"',
        f"train: {'[' * 5000}", "? [a]\n: b", "a: *nowhere",
    ],
)  # fmt: skip
def test_yaml_that_pyyaml_stumbles_over_is_refused(yaml, text):
    with pytest.raises(ConfigError, match=r"a\.yaml: not YAML"):
        RunConfig.from_file(yaml(text))


@pytest.mark.parametrize("line", ["l{i}: &l{i} [{of}]", "l{i}: &l{i} {{<<: [{of}]}}"], ids=["lists", "merges"])
def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(yaml, line):
    lines = ["l0: &l0 {a: 1}", *(line.format(i=i, of=", ".join([f"*l{i - 1}"] * 10)) for i in range(1, 12))]
    begun = time.process_time()
    with pytest.raises(ConfigError, match="its aliases make it too large"):
        RunConfig.from_file(yaml("\n".join(lines)))
    assert time.process_time() - begun < 2


def test_brackets_within_brackets_are_refused_before_they_take_seconds(yaml):
    begun = time.process_time()
    with pytest.raises(ConfigError, match="nested too deep"):
        RunConfig.from_file(yaml(f"train: {'[' * 20_000}"))
    assert time.process_time() - begun < 1


def test_a_file_too_large_for_a_configuration_is_not_read(yaml):
    with pytest.raises(ConfigError, match="so no configuration"):
        RunConfig.from_file(yaml("#" * 100_000))


@pytest.mark.parametrize("value", ["{lr: !!bool maybe}", "2001-13-41", "[" * 3000], ids=["bool", "date", "deep"])
def test_an_override_that_pyyaml_stumbles_over_is_refused(corpus, value):
    with pytest.raises(ConfigError, match="not a YAML value"):
        RunConfig.from_file(corpus.recipe, [f"train={value}"])


@pytest.mark.parametrize("name", [".mine:Mine", "os:system", "os:path", ":", "json:"])
def test_a_model_that_is_none_is_refused(corpus, name):
    with pytest.raises(ConfigError, match=r"model\.name = "):
        RunConfig.from_file(corpus.recipe, [f"model.name='{name}'"])


def test_a_message_has_a_bounded_length_and_keeps_its_beginning_and_its_end(yaml):
    with pytest.raises(ConfigError) as refused:
        RunConfig.from_file(yaml("".join(f"key{i}: 1\n" for i in range(2000))))
    assert len(str(refused.value)) <= LONGEST_MESSAGE and "2,002 problems" in str(refused.value)
    message = str(UserError(f"thing: {'x' * 10_000}; cure"))
    assert len(message) == LONGEST_MESSAGE and message.startswith("thing: x") and message.endswith("x; cure")


def test_a_study_whose_base_is_missing_is_named_too(corpus, yaml):
    from dsllm.comparison.study import Study

    with pytest.raises(ConfigError, match=r"a\.yaml: base: nowhere\.yaml: cannot be read"):
        Study.read(yaml("base: nowhere.yaml\narms: {a: {}}"))


def test_document_bounds_whose_differences_go_round_are_refused(tmp_path):
    with IndexedWriter(tmp_path / "a", np.uint16) as writer:
        for _ in range(4):
            writer.add(np.array([1, 2]))
        writer.finish()
    index = bytearray((tmp_path / "a.idx").read_bytes())
    third = (2**64 + 4) // 4
    bounds = np.array([0, third, 2 * third, 3 * third, 4], np.uint64)
    assert (np.diff(bounds.view(np.int64)) > 0).all()
    index[-40:] = bounds.tobytes()
    (tmp_path / "a.idx").write_bytes(index)
    with pytest.raises(DataError, match="holds"):
        IndexedPair(tmp_path / "a").document(1)


@pytest.mark.parametrize("slots", ["9" * 5000, "٣", "9999999"])
def test_slots_that_are_no_plain_number_are_refused(tmp_path, slots):
    (tmp_path / "hosts").write_text(f"node1 slots={slots}\n")
    with pytest.raises(UserError, match="line 1 is"):
        read_hostfile(tmp_path / "hosts")


def test_json_nested_deep_is_refused_wherever_it_is_read(corpus, tmp_path):
    def put(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(DEEP)

    for name in (
        "manifest.json",
        "journal.json",
        "tensors.json",
        "tokenizer.json",
        "growth/step_00000001.01/event.json",
    ):
        put(name)
    with pytest.raises(DataError, match=r"manifest\.json: not JSON \(nested too deep\)"):
        Manifest.read(tmp_path)
    with pytest.raises(DataError, match=r"journal\.json"):
        Journal.read(tmp_path)
    with pytest.raises(CheckpointError, match=r"tensors\.json: cannot be read"):
        TensorStore.read(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"event\.json: cannot be read"):
        Event.read(tmp_path, "step_00000001.01")
    with pytest.raises(CheckpointError, match="a growth plan cannot be read"):
        GrowthPlan.from_json(DEEP)


@pytest.mark.parametrize("token", ["[]", '{"content": {}}', "3", DEEP])
def test_an_end_of_text_that_is_no_text_is_refused(corpus, token):
    config = corpus.tokenizer / "tokenizer_config.json"
    before = config.read_text()
    config.write_text(f'{{"eos_token": {token}}}')
    try:
        with pytest.raises(DataError, match=r"tokenizer_config\.json"):
            load_tokenizer(str(corpus.tokenizer))
    finally:
        config.write_text(before)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "vocab", "a"), 2**32 - 1),  # 32 GiB for the bytes of each token
        (("model", "continuing_subword_prefix"), "long" * 50),  # a panic of the tokenizers package
        (("model", "unk_token"), "none of the vocabulary"),
    ],
)
def test_a_tokenizer_that_its_package_chokes_on_is_refused(corpus, tmp_path, place, value):
    facts = json.loads((corpus.tokenizer / "tokenizer.json").read_text())
    *path, last = place
    part = facts
    for key in path:
        part = part[key]
    part[last] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"tokenizer\.json: "):
        load_tokenizer(str(tmp_path)).encode("∑")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_probe_that_is_cut_short_is_refused(tmp_path, content):
    (tmp_path / "probe.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"probe\.npz: cannot be read"):
        Probe.load(tmp_path / "probe.npz")


@pytest.mark.parametrize("change", [{"tensors": []}, {"tensors": {"a": 3}}, {"dead_at_start": 3}])
def test_a_growth_plan_of_another_structure_is_refused(corpus, change):
    facts = json.loads((corpus.folder / "plan.json").read_text())
    facts["plan"] |= change
    with pytest.raises(CheckpointError, match="a growth plan cannot be read"):
        GrowthPlan.from_json(json.dumps(facts))


@pytest.mark.parametrize("counts", [None, [], {"read": 1}, {"read": -1, "empty": 0, "skipped": 0}])
def test_a_journal_without_counts_is_refused(corpus, tmp_path, counts):
    facts = json.loads((corpus.unfinished / "journal.json").read_text())
    facts["manifest"]["source"]["counts"] = counts
    (tmp_path / "journal.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="not a journal of this version"):
        Journal.read(tmp_path)


@pytest.mark.parametrize("position", [3, {}, {"file": "x", "record": 0}, {"file": -1, "record": 0}])
def test_a_position_that_is_none_is_refused(tmp_path, position):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"journal\.json: position"):
        list(local_files(str(tmp_path / "a.txt"), ("text",)).documents(position))


NO_RECORDS = ["3", "[]", "null", "{}", '{"kind": "eval", "step": 1}', '{"kind": "train", "step": "x"}', DEEP, "\udcff"]


def test_lines_that_are_no_records_are_counted_and_do_not_stop_a_run(tmp_path):
    good = '{"kind": "train", "step": 1, "loss": 2.0}'
    text = "\n".join([good, *NO_RECORDS, '{"kind": "growth", "step": 1, "plan": []}', good, '{"kind": "tr'])
    (tmp_path / METRICS).write_bytes(text.encode(errors="surrogateescape"))
    assert read_metrics(tmp_path) == [json.loads(good)] * 2
    assert damaged_lines(tmp_path) == list(range(2, 11))
    Monitor(tmp_path, MonitorConfig(tensorboard=False), Progress(step=1), steps=2).close()
    assert damaged_lines(tmp_path) == []


def test_a_cut_last_line_alone_is_no_damage_but_a_whole_one_is(tmp_path):
    (tmp_path / METRICS).write_text('{"kind": "train", "st')
    assert damaged_lines(tmp_path) == []
    (tmp_path / METRICS).write_text('{"kind": "train", "st\n')
    assert damaged_lines(tmp_path) == [1]


def test_adapters_of_another_type_are_refused(corpus, tmp_path):
    content = (corpus.folder / "adapters.safetensors").read_bytes().replace(b'"F32"', b'"I32"', 1)
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .* is not in fp32"):
        load_adapters(corpus.adapted, tmp_path / "a.safetensors", BASE)


def test_a_record_whose_names_lead_elsewhere_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"name": "../x", "group": "a/../../b"}')
    with pytest.raises(UserError, match=r"r\.json: no record of a run"):
        RunRecord.read(tmp_path / "r.json")
