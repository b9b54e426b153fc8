"""Groups of documents to tokens: in order, whole, and equal to tiktoken's by every way."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_prep.batches import Batch, batches
from data_prep.encoding import MAX_RUN, encode_batches
from data_prep.fast import DIFFICULT, MARK, DisagreementError, FastEncoder, fastest_encoder
from data_prep.sources.opening import open_source
from data_prep.splits import SplitRule
from dsllm.errors import DataError
from dsllm.tokenizer import load_tokenizer
from tests.data_prep.corpora import texts

EVERYTHING = SplitRule((1.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


def groups(*members: list[str]) -> list[Batch]:
    return [Batch(texts=list(member), places=[f"place {i}" for i in range(len(member))]) for member in members]


def encoded(tokenizer, batch_list, encoder=None, workers=2):
    return list(
        encode_batches(
            batch_list,
            encoder or tokenizer,
            EVERYTHING,
            end_of_text=tokenizer.end_of_text,
            dtype=tokenizer.dtype,
            workers=workers,
        )
    )


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@pytest.mark.parametrize("workers", [1, 3])
def test_each_document_is_its_tokens_and_one_end_of_text_in_order(name, workers):
    tokenizer = load_tokenizer(name)
    encoder, _ = fastest_encoder(tokenizer)
    members = [texts(50, seed=seed) for seed in range(8)]
    parts = [group.by_split["train"] for group in encoded(tokenizer, groups(*members), encoder, workers)]
    found = [np.split(part.tokens, np.cumsum(part.sizes)[:-1]) for part in parts]
    expected = [[[*tokenizer.encode(text), tokenizer.end_of_text] for text in member] for member in members]
    assert [[document.tolist() for document in group] for group in found] == expected
    assert all(part.tokens.dtype == tokenizer.dtype for part in parts)
    assert [part.text_bytes for part in parts] == [sum(len(text.encode()) for text in member) for member in members]


def test_gigatoken_is_used_for_gpt2_and_gives_its_tokens_for_difficult_text(gpt2):
    encoder, reason = fastest_encoder(gpt2)
    assert isinstance(encoder, FastEncoder) and reason is None
    tokens, sizes = encoder.encode_batch([DIFFICULT, "x", *texts(200)])
    assert tokens.tolist() == [id for text in [DIFFICULT, "x", *texts(200)] for id in gpt2.encode(text)]
    assert len(sizes) == 202


@pytest.mark.parametrize(
    "text", ["a" + MARK.decode() + "b", MARK.decode(), MARK.decode() * 2, "ends with " + MARK.decode()[:2]]
)
def test_a_text_that_holds_the_mark_between_documents_is_tiktoken_s_all_the_same(gpt2, text):
    members = ["before ", text, " after", "<|endoftext|>"]
    tokens, sizes = fastest_encoder(gpt2)[0].encode_batch(members)
    assert tokens.tolist() == [id for member in members for id in gpt2.encode(member)]
    assert sizes.tolist() == [len(gpt2.encode(member)) for member in members]


def test_white_space_at_the_ends_of_documents_does_not_reach_over_to_the_next(gpt2):
    members = ["a \n", "\n  b  ", "  ", " c\n\n\n", "it'", "s"]
    tokens, sizes = fastest_encoder(gpt2)[0].encode_batch(members)
    assert tokens.tolist() == [id for member in members for id in gpt2.encode(member)]
    assert sizes.tolist() == [len(gpt2.encode(member)) for member in members]


def test_more_threads_than_tokenizers_of_gigatoken_give_the_same_tokens(gpt2):
    encoder, _ = fastest_encoder(gpt2)
    members = [texts(50, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda member: encoder.encode_batch(member)[0].tolist(), members))
    assert found == [[id for text in member for id in gpt2.encode(text)] for member in members]


def test_gigatoken_with_another_rule_of_cutting_is_found_out_before_the_first_document(gpt2):
    with pytest.raises(DisagreementError, match="other tokens than tiktoken"):
        FastEncoder(gpt2, "gpt4")


def test_gigatoken_with_a_rule_that_it_does_not_know_is_a_disagreement(gpt2):
    with pytest.raises(DisagreementError, match="gigatoken failed"):
        FastEncoder(gpt2, "no such rule")


def test_a_very_long_run_is_encoded_in_pieces_and_named(gpt2):
    long = "before " + "ab" * MAX_RUN + " after"
    [group] = encoded(gpt2, groups(["first", long, "last"]))
    part = group.by_split["train"]
    assert group.notes == (
        "place 1: more than 1,000,000 characters without white space, encoded in 2 pieces",
    ) or group.notes == ("place 1: more than 1,000,000 characters without white space, encoded in 3 pieces",)
    documents = np.split(part.tokens, np.cumsum(part.sizes)[:-1])
    assert [gpt2.decode(document[:-1]) for document in documents] == ["first", long, "last"]
    assert all(document[-1] == gpt2.end_of_text for document in documents)


def test_a_long_document_of_words_is_encoded_at_once(gpt2):
    text = "word " * (MAX_RUN // 4)
    [group] = encoded(gpt2, groups([text]), fastest_encoder(gpt2)[0])
    assert group.notes == ()
    assert group.by_split["train"].tokens[:-1].tolist() == gpt2.encode(text).tolist()


def read(tmp_path: Path, content: bytes, errors, **options) -> list[Batch]:
    (tmp_path / "a.jsonl").write_bytes(content)
    settings = {"batch_bytes": 1 << 20, "limit": None, **options}
    return list(batches(open_source(str(tmp_path / "a.jsonl")), None, errors=errors, **settings))


def test_groups_end_where_the_text_says(tmp_path: Path):
    lines = b"".join(b'{"text": "0123456789"}\n' for _ in range(7))
    found = read(tmp_path, lines, "strict", batch_bytes=25)
    assert [len(batch.texts) for batch in found] == [3, 3, 1]
    assert [batch.position for batch in found] == [
        {"file": 0, "record": 3},
        {"file": 0, "record": 6},
        {"file": 1, "record": 0},
    ]
    assert [len(batch.texts) for batch in read(tmp_path, lines, "strict", batch_bytes=25, limit=4)] == [3, 1]


def test_empty_documents_are_counted_and_left_out(tmp_path: Path):
    [batch] = read(tmp_path, b'{"text": "one"}\n{"text": ""}\n{"text": " \\n"}\n{"text": null}\n', "strict")
    assert (batch.texts, batch.read, batch.empty) == (["one"], 4, 3)


BROKEN = b'{"text": "one"}\n{"text": "t\xffo"}\n{"text": "\\ud800"}\nnot json\n'


def test_strict_stops_at_the_first_unusable_document_and_names_the_cure(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.jsonl:2: byte 27 is not UTF-8 .*; mend it, or take --errors replace or"):
        read(tmp_path, BROKEN, "strict")
    with pytest.raises(DataError, match=r"a\.jsonl:1: character 0 is a lone surrogate"):
        read(tmp_path, b'{"text": "\\ud800"}', "strict")


def test_skip_leaves_unusable_documents_out_and_counts_them(tmp_path: Path):
    [batch] = read(tmp_path, BROKEN, "skip")
    assert (batch.texts, batch.read, batch.skipped) == (["one"], 4, 3)


def test_replace_mends_bytes_and_stops_where_that_is_no_cure(tmp_path: Path):
    [batch] = read(tmp_path, BROKEN.removesuffix(b"not json\n"), "replace")
    assert batch.texts == ["one", "t\ufffdo", "\ufffd"]
    with pytest.raises(DataError, match=r"a\.jsonl:4: not JSON .*; mend it, or take --errors skip"):
        read(tmp_path, BROKEN, "replace")


@pytest.mark.slow
def test_every_document_of_the_demo_has_the_tokens_that_tiktoken_gives_it(gpt2):
    source = open_source("installed:sympy,mpmath,networkx")
    found = list(batches(source, None, batch_bytes=1 << 20, limit=None, errors="strict"))
    parts = [group.by_split["train"] for group in encoded(gpt2, found, fastest_encoder(gpt2)[0])]
    stream = iter(np.split(part.tokens, np.cumsum(part.sizes)[:-1]) for part in parts)
    for batch in found:
        for text, tokens in zip(batch.texts, next(stream), strict=True):
            assert tokens.tolist() == [*gpt2.encoding.encode_ordinary(text), 50256]
    assert sum(len(batch.texts) for batch in found) > 2000
