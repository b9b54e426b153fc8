"""Documents from files, folders, globs, packages and streamed data sets: which, in what order, and from where."""

import gzip
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import zstandard

from data_prep.sources.base import Source
from data_prep.sources.hub import DatasetSource
from data_prep.sources.installed import InstalledSource
from data_prep.sources.opening import open_source
from dsllm.errors import DataError
from tests.data_prep.corpora import json_lines, texts


def all_texts(source: Source, position=None) -> list[str | None]:
    return [document.text for document in source.documents(position)]


def problems(source: Source) -> list[str | None]:
    return [document.problem for document in source.documents(None) if document.problem]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The same forty documents in every form that is read record by record."""
    folder = tmp_path / "records"
    folder.mkdir()
    lines = json_lines(folder / "a.jsonl", texts(40)).read_bytes()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines[:900]) + gzip.compress(lines[900:]))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines[:900]) + zstandard.compress(lines[900:]))
    table = arrow.table({"text": texts(40), "n": list(range(40))})
    parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    return folder


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_records_come_in_order_and_from_any_position_on(records: Path, name):
    source = open_source(str(records / name))
    seen, positions = [], []
    for document in source.documents(None):
        seen.append(document.text)
        positions.append(json.loads(json.dumps(source.position)))
    assert seen == texts(40)
    for k in (0, 6, 7, 38, 39):
        assert all_texts(open_source(str(records / name)), positions[k]) == seen[k + 1 :]


def test_a_source_can_be_read_again_from_its_beginning(records: Path):
    source = open_source(str(records / "a.jsonl"))
    assert all_texts(source) == all_texts(source)


def test_fields_are_joined_by_an_empty_line_and_nulls_are_left_out(tmp_path: Path):
    path = tmp_path / "college.jsonl"
    rows = [{"instruction": "q", "output": "a"}, {"instruction": None, "output": "b"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert all_texts(open_source(str(path), fields=("instruction", "output"))) == ["q\n\na", "b"]


def test_a_folder_gives_its_text_files_by_name_without_hidden_and_unknown_ones(tmp_path: Path):
    for name in ("b.md", "a/z.txt", "a/b.py", ".git/x.py", "a/.hidden.txt", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert all_texts(open_source(str(tmp_path))) == ["a/b.py", "a/z.txt", "b.md"]
    assert all_texts(open_source(str(tmp_path / "**" / "*.txt"))) == ["a/z.txt"]
    assert all_texts(open_source(str(tmp_path / "c.png"))) == ["c.png"]


def test_the_readme_of_a_folder_of_records_is_no_document(tmp_path: Path):
    (tmp_path / "README.md").write_text("about")
    json_lines(tmp_path / "a.jsonl", ["one"])
    assert all_texts(open_source(str(tmp_path))) == ["one"]


def test_a_byte_order_mark_is_not_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfplain")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "json"}\n')
    assert all_texts(open_source(str(tmp_path / "a.txt"))) == ["plain"]
    assert all_texts(open_source(str(tmp_path / "b.jsonl"))) == ["json"]


def test_installed_packages_give_their_sources_and_know_their_versions():
    source = InstalledSource("installed:mpmath,fire")
    found = all_texts(source)
    assert len(found) > 50 and any("ctx_mp" in (text or "") for text in found)
    assert source.identity["versions"] == {"mpmath": version("mpmath"), "fire": version("fire")}
    with pytest.raises(DataError, match="no such package here; `pip install nonesuch`"):
        InstalledSource("installed:nonesuch")


def test_another_listing_has_another_identity(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    before = open_source(str(tmp_path)).identity
    assert open_source(str(tmp_path)).identity == before
    (tmp_path / "b.txt").write_text("two")
    assert open_source(str(tmp_path)).identity != before


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_streamed_data_set_goes_on_exactly_where_its_position_says(tmp_path: Path, kind):
    rows = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(50)]
    path = tmp_path / f"college.{kind}"
    if kind == "parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=8)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))

    def source() -> DatasetSource:
        def load() -> datasets.IterableDataset:
            return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)

        return DatasetSource("college", ("instruction", "output"), load, {"commit": "c0ffee"})

    first = source()
    seen, positions = [], []
    for document in first.documents(None):
        seen.append(document.text)
        positions.append(json.loads(json.dumps(first.position)))
    assert seen == [f"question {i}\n\nanswer {i}" for i in range(50)]
    for k in (0, 7, 23, 48, 49):
        following = source()
        assert all_texts(following, positions[k]) == seen[k + 1 :]
        assert following.position["row"] == 50


def test_a_column_that_a_streamed_data_set_lacks_is_named_with_those_there_are(tmp_path: Path):
    path = json_lines(tmp_path / "a.jsonl", ["x"])

    def load() -> datasets.IterableDataset:
        return datasets.load_dataset("json", data_files=str(path), split="train", streaming=True)

    with pytest.raises(DataError, match="a: row 1: no column 'txt', there are: n, text; name one or several with"):
        all_texts(DatasetSource("a", ("txt",), load, {}))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_column_that_a_file_lacks_is_named_with_those_there_are(records: Path, name):
    with pytest.raises(DataError, match="no column 'txt', there are: n, text"):
        all_texts(open_source(str(records / name), fields=("txt",)))


def test_a_column_of_numbers_is_no_text(records: Path):
    with pytest.raises(DataError, match="column 'n' holds int64, not text"):
        all_texts(open_source(str(records / "a.parquet"), fields=("n",)))
    assert "holds int, not text" in problems(open_source(str(records / "a.jsonl"), fields=("n",)))[0]


@pytest.mark.parametrize("kind", [arrow.string(), arrow.large_string(), arrow.string_view()], ids=str)
def test_every_arrow_type_of_strings_is_text(tmp_path: Path, kind):
    parquet.write_table(arrow.table({"text": arrow.array(texts(20), kind)}), tmp_path / "a.parquet")
    assert all_texts(open_source(str(tmp_path / "a.parquet"))) == texts(20)


def test_categories_of_strings_are_text_and_categories_of_numbers_are_not(tmp_path: Path):
    columns = {"text": arrow.array(["b", "a", None, "b"]), "n": arrow.array([7, 8, 7, 8])}
    table = arrow.table({name: column.dictionary_encode() for name, column in columns.items()})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert all_texts(open_source(str(tmp_path / "a.parquet"))) == ["b", "a", "", "b"]
    with pytest.raises(DataError, match=r"column 'n' holds .*int64.*, not text"):
        all_texts(open_source(str(tmp_path / "a.parquet"), fields=("n",)))


def test_bytes_that_are_no_utf8_are_named_with_their_offset(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"good\xffbad")
    [found] = list(open_source(str(tmp_path / "a.txt")).documents(None))
    assert found.problem == f"{tmp_path}/a.txt: byte 4 is not UTF-8 (invalid start byte)"
    assert found.text == "good\ufffdbad"
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "one"}\n{"text": "t\xffo"}\n')
    [found] = [document for document in open_source(str(tmp_path / "b.jsonl")).documents(None) if document.problem]
    assert found.problem == f"{tmp_path}/b.jsonl:2: byte 27 is not UTF-8 (invalid start byte)"
    assert found.text == "t\ufffdo"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "a.jsonl:2: not JSON"),
        (b"[1, 2]", "a.jsonl:2: a JSON list, not an object"),
        (b'{"other": "x"}', "a.jsonl:2: no column 'text', there are: other"),
        (b"[" * 100_000, "a.jsonl:2: not JSON"),
    ],
)
def test_a_broken_json_line_is_named_and_the_next_one_is_read(tmp_path: Path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + line + b'\n\n{"text": "three"}')
    found = list(open_source(str(tmp_path / "a.jsonl")).documents(None))
    assert [document.text for document in found] == ["one", None, "three"]
    assert message in found[1].problem


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_cut_or_damaged_compressed_file_is_a_problem_that_is_met_once(tmp_path: Path, suffix, damage):
    lines = json_lines(tmp_path / "whole", texts(2000)).read_bytes()
    content = bytearray(
        gzip.compress(lines) if suffix == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    )
    if damage == "cut":
        content = content[:-20]
    else:
        middle = len(content) // 2
        content[middle : middle + 50] = bytes(50)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"a.jsonl.{suffix}").write_bytes(content)
    json_lines(folder / "b.jsonl", ["after"])
    source = open_source(str(folder))
    found, positions = [], []
    for document in source.documents(None):
        found.append(document)
        positions.append(source.position)
    flawed = [i for i, document in enumerate(found) if document.problem and "fetch" in document.problem]
    assert len(flawed) == 1 and found[-1].text == "after"
    assert all_texts(source, positions[flawed[0]]) == ["after"]


def test_a_damaged_parquet_file_is_a_problem(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert "not a whole parquet file" in problems(open_source(str(tmp_path / "a.parquet")))[0]


READ_WITHOUT_PRIVILEGES = """
import os, sys
from data_prep.sources.opening import open_source

if os.geteuid() == 0:
    # Only now: where root alone may enter Python's own folder, nobody could not have started it.
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for document in open_source(sys.argv[1]).documents(None):
    print(document.problem)
"""


def test_a_file_that_may_not_be_read_is_a_problem():
    with TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a.txt").write_text("x")
        (folder / "a.txt").chmod(0)
        command = [sys.executable, "-c", READ_WITHOUT_PRIVILEGES, name]
        child = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout == f"{name}/a.txt: Permission denied; check the path and its permissions\n"


def test_a_file_that_is_gone_when_its_turn_comes_is_a_problem(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    source = open_source(str(tmp_path))
    (tmp_path / "a.txt").unlink()
    assert "a.txt: No such file" in problems(source)[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open-web-maths", "did you mean open-web-math"),
        ("nothing here", "no such file, folder or data set; presets: open-web-math, maths-college"),
        ("folder/missing.jsonl", "no such file, folder or data set"),
        ("/missing/folder", "no such file, folder or data set"),
        ("missing/*.txt", "no file fits the pattern"),
        ("installed:", "no package named"),
    ],
)
def test_an_unknown_source_is_an_error_that_names_the_cure(name, message, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        open_source(name)


def test_a_folder_without_text_says_what_is_in_it(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"nothing to read: it holds \.png"):
        open_source(str(tmp_path))
