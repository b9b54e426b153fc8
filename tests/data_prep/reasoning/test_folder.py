"""A data folder of problems: labels beside the tokens, splits that share nothing, and what a wrong command is told."""

import json
import shutil

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.reasoning import TASKS
from dsllm.data.indexed import IndexedPair
from dsllm.data.manifest import Manifest
from dsllm.data.verify import verify_folder
from dsllm.tokenizer import tokenizer_of
from tests.data_prep.reasoning.test_tasks import by_igsm_lite, by_vars_chain

SPLITS = ["train", "val", "test", "beyond"]


def make(out, *options):
    main(["reasoning", "--out", str(out), "--documents", "300", "--held_out", "20", *map(str, options)])


def streams(folder, split):
    return [IndexedPair(folder / f"{split}_00000{of}") for of in ("", ".labels", ".depths")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("problems") / "vars"
    make(out, "--task", "vars_chain", "--lengths", "2-7", "--beyond", "8-9", "--options", "values=4,names=24")
    return out


def test_every_problem_comes_back_as_text_with_the_labels_that_the_rules_give(folder):
    tokenizer, task = tokenizer_of(folder), TASKS["vars_chain"](values=4, names=24)
    lengths: dict[str, set[int]] = {}
    for split in SPLITS:
        tokens, labels, depths = streams(folder, split)
        assert (tokens.sizes == labels.sizes).all() and (tokens.sizes == depths.sizes).all()
        for i in range(len(tokens)):
            words = tokenizer.decode(tokens.document(i).tolist()).split()
            assert words.pop() == "<|endoftext|>"
            length = int(depths.document(i).max())
            lengths.setdefault(split, set()).add(length)
            found = {
                int(t): (task.words[labels.document(i)[t]], int(depths.document(i)[t]))
                for t in np.flatnonzero(labels.document(i) != -100)
            }
            assert found == by_vars_chain(task, words, length)
    assert lengths == {**{key: {2, 3, 4, 5, 6, 7} for key in SPLITS[:3]}, "beyond": {8, 9}}


def test_no_problem_is_in_two_splits_and_none_is_held_out_twice(folder):
    rows = {split: _documents(folder, split) for split in SPLITS}
    for split in SPLITS:
        others = set().union(*(rows[other] for other in SPLITS if other != split))
        assert not others & set(rows[split])
        assert split == "train" or len(set(rows[split])) == len(rows[split])


def _documents(folder, split):
    tokens = streams(folder, split)[0]
    return [tokens.document(i).tobytes() for i in range(len(tokens))]


def test_nothing_is_trained_on_that_a_held_out_answer_follows_from(tmp_path):
    """A problem of perm_chain begins with shorter ones, whose answers are labels: none leaks from step 4 on."""
    chosen = ["--lengths", "1-6", "--beyond", "7-8", "--documents", "20000", "--held_out", "300"]
    chosen += ["--options", "values=3,functions=4", "--out", str(tmp_path / "perm")]
    main(["reasoning", "--task", "perm_chain", *chosen])
    trained = {
        document[: end + 1].tobytes()
        for document in map(np.array, _problems(tmp_path / "perm", "train"))
        for end in range(len(document) - 1)
    }
    for split in ("val", "test", "beyond"):
        for document in map(np.array, _problems(tmp_path / "perm", split)):
            for end in range(4, len(document) - 1):
                assert document[: end + 1].tobytes() not in trained


def _problems(folder, split):
    tokens = streams(folder, split)[0]
    return [tokens.document(i) for i in range(len(tokens))]


def test_chains_of_which_too_few_problems_exist_are_told(tmp_path, capsys):
    make(tmp_path / "few", "--task", "perm_chain", "--lengths", "1-6", "--options", "values=3,functions=3")
    said = capsys.readouterr().out
    found = Manifest.read(tmp_path / "few").source["problems"]["val"]
    for length in "12":
        assert f"val, chains of {length}: {found.get(length, 0)} of 20 problems, as there are no more" in said
    assert "chains of 6" not in said and found["6"] == 20


def test_what_cannot_be_made_anew_stays_as_it_was(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "kept")
    before = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    with pytest.raises(SystemExit):
        make(tmp_path / "kept", "--task", "perm_chain", "--lengths", 1, "--options", "values=2,functions=1", "--fresh")
    assert {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()} == before
    make(tmp_path / "kept", "--task", "addition", "--lengths", 2, "--fresh")
    assert verify_folder(tmp_path / "kept").sound
    assert Manifest.read(tmp_path / "kept").source["source"] == "reasoning:addition"


def test_a_file_of_the_users_own_is_neither_taken_for_ours_nor_removed(tmp_path):
    (tmp_path / "train_00000.bin.tmp").write_text("mine")
    make(tmp_path, "--task", "addition", "--lengths", 2)
    assert (tmp_path / "train_00000.bin.tmp").read_text() == "mine"


def test_the_manifest_says_what_was_asked_for_and_how_many_problems_there_are(folder):
    manifest = Manifest.read(folder)
    assert manifest.source["source"] == "reasoning:vars_chain"
    assert (manifest.source["seed"], manifest.source["values"], manifest.source["table_seed"]) == (0, 4, 0)
    assert manifest.source["problems"]["train"] == dict.fromkeys("234567", 50)
    assert manifest.source["problems"]["beyond"] == {"8": 20, "9": 20}
    assert manifest.source["chance"]["9"] == 1 / 4
    assert verify_folder(folder).sound


@pytest.mark.parametrize("name", TASKS)
def test_the_same_command_makes_the_same_bytes_and_another_seed_others(name, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / out, "--task", name, "--lengths", "3-4", "--seed", seed)
    files = {out: {f.name: f.read_bytes() for f in (tmp_path / out).iterdir()} for out in "abc"}
    for rates in files.values():
        del rates["rates.json"]
    assert files["a"] == files["b"]
    assert files["a"]["test_00000.bin"] != files["c"]["test_00000.bin"]


def test_problems_in_characters_can_be_bytes_for_models_of_text(tmp_path):
    make(tmp_path / "igsm", "--task", "igsm_lite", "--lengths", 5, "--vocabulary", "bytes")
    tokenizer, task = tokenizer_of(tmp_path / "igsm"), TASKS["igsm_lite"]()
    assert tokenizer.name == "bytes"
    tokens, labels, _ = streams(tmp_path / "igsm", "test")
    for i in range(len(tokens)):
        text = tokenizer.decode(tokens.document(i)[:-1].tolist())
        (said,) = by_igsm_lite(task, list(text), 5).values()
        (label,) = labels.document(i)[labels.document(i) != -100]
        assert chr(label) == said[0]


def test_short_chains_have_as_many_problems_as_there_are(tmp_path):
    make(tmp_path / "short", "--task", "perm_chain", "--lengths", "1-2", "--options", "values=3,functions=6")
    problems = Manifest.read(tmp_path / "short").source["problems"]
    assert problems["test"].get("1", 0) < 20 and problems["train"] == {"1": 150, "2": 150}


def test_the_same_command_again_has_nothing_to_do_and_another_is_refused(folder, capsys):
    before = (folder / "manifest.json").read_bytes()
    again = ["--task", "vars_chain", "--lengths", "2-7", "--beyond", "8-9", "--options", "values=4,names=24"]
    make(folder, *again)
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        make(folder, *again, "--seed", 3)
    assert ended.value.code == 2
    assert "seed: 0 then, 3 now" in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == before


def test_a_half_made_folder_is_made_anew(folder, tmp_path):
    options = ("--task", "addition", "--lengths", "2-3")
    make(tmp_path / "whole", *options)
    make(tmp_path / "half", *options)
    path = tmp_path / "half" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False, "shards": []}))
    (tmp_path / "half" / "test_00000.bin").write_bytes(b"half")
    make(tmp_path / "half", *options)
    assert path.read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert verify_folder(tmp_path / "half").sound


def test_a_label_that_was_changed_on_the_disk_is_found(folder, tmp_path):
    make(tmp_path / "broken", "--task", "perm_chain", "--lengths", "3-4")
    file = tmp_path / "broken" / "test_00000.labels.bin"
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    (problem,) = verify_folder(tmp_path / "broken").problems
    assert "test_00000.labels.bin: SHA-256" in problem


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "perm_chian"], "--task perm_chian: no such task; take perm_chain"),
        (["--task", "perm_chain", "--lengths", "0-3"], "--lengths 0-3: no range of chain lengths"),
        (["--task", "perm_chain", "--lengths", "5-3"], "--lengths 5-3: no range of chain lengths"),
        (["--task", "perm_chain", "--lengths", "1-4", "--beyond", "4-9"], "--beyond 4-9: must begin after 4"),
        (["--task", "vars_chain", "--lengths", "1-30"], "--lengths 1-30: the longest chain of vars_chain"),
        (["--task", "perm_chain", "--options", "values"], "values has no value"),
        (["--task", "perm_chain", "--options", "values=3,values=2"], "values stands twice"),
        (["--task", "perm_chain", "--lengths", "100000"], "no range of chain lengths; give one within 1-65535"),
        (["--task", "perm_chain", "--options", "values=1"], "--options values = '1': input should be greater than"),
        (
            ["--task", "perm_chain", "--options", "value=3"],
            "--options value: no such key; did you mean --options values",
        ),
        (["--task", "perm_chain", "--held_out", "0"], "--held_out 0: must be at least 1"),
        (["--task", "perm_chain", "--documents", "many"], "--documents many: not a whole number"),
        (["--task", "perm_chain", "--vocabulary", "bytes"], "--vocabulary bytes: the words of perm_chain"),
        (["--task", "addition", "--vocabulary", "gpt2"], "--vocabulary gpt2: no such vocabulary"),
        (["--task", "perm_chain", "--lengths", "1", "--options", "values=2,functions=1"], "none falls to"),
        (["--task", "perm_chain", "--lengths", "1-99999999999999999999"], "no range of chain lengths"),
        (
            ["--task", "pointer_chase", "--lengths", "1-13"],
            "the longest chain of pointer_chase",
        ),
        (["--task", "p_hop", "--lengths", "6", "--options", "sequence=8"], "the longest chain of p_hop"),
        (["--task", "p_hop", "--lengths", "4", "--options", "sequence=8,letters=256"], "none falls to"),
        (["--tsk", "perm_chain"], "--task is missing"),
    ],
)
def test_a_wrong_command_is_told_in_one_message_and_leaves_nothing(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["reasoning", "--out", str(tmp_path / "out"), *options])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
