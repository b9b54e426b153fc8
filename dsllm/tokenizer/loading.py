"""A tokenizer by its name, or the one that made a data folder."""

from difflib import get_close_matches
from pathlib import Path

import tiktoken

from dsllm.data.files import inside
from dsllm.data.foreign import is_llmc
from dsllm.data.manifest import MANIFEST_NAME, Manifest
from dsllm.errors import DataError, shown
from dsllm.tokenizer.base import Tokenizer
from dsllm.tokenizer.byte_pair import gpt2, tiktoken_encoding
from dsllm.tokenizer.bytes import ByteTokenizer
from dsllm.tokenizer.hugging_face import CONFIG_FILE, TOKENIZER_FILE, HuggingFaceTokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """
    Args:
        name: gpt2, bytes, another encoding of tiktoken, or the path of a `tokenizer.json` or of its folder.

    Raises:
        DataError: nothing of that name, a file that is no tokenizer, or ranks that cannot be downloaded.
    """
    if name not in _known():
        path = Path(name)
        if path.is_dir():
            path = path / TOKENIZER_FILE
        if path.suffix == ".json":
            return HuggingFaceTokenizer(path)
    return tokenizer_named(name)


def tokenizer_named(name: str) -> Tokenizer:
    """A tokenizer that needs no file of the user's: what a file may name, for its names lead to no other file.

    Args:
        name: gpt2, bytes, or another encoding of tiktoken.

    Raises:
        DataError: nothing of that name, or ranks that cannot be downloaded.
    """
    if name == "gpt2":
        return gpt2()
    if name == "bytes":
        return ByteTokenizer()
    known = _known()
    if name in known:
        return tiktoken_encoding(name)
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"take {', '.join(known)} or the path of a {TOKENIZER_FILE}"
    raise DataError(f"tokenizer {shown(name)}: no such tokenizer; {hint}")


def _known() -> list[str]:
    return ["gpt2", "bytes", *sorted(set(tiktoken.list_encoding_names()) - {"gpt2"})]


def tokenizer_of(data: Path) -> Tokenizer:
    """The tokenizer that made a data folder, checked by its hash; GPT-2's for a file of llm.c.

    Raises:
        DataError: no manifest, a vocabulary other than then, a tokenizer.json that is a link out of the folder, or
            what `tokenizer_named` raises.
    """
    data = Path(data)
    if not (data / MANIFEST_NAME).exists() and data.exists():
        if is_llmc(data):
            return gpt2()
        raise DataError(
            f"{data}: no {MANIFEST_NAME} says which tokenizer made it; make a data folder of it with "
            f"`python -m data_prep convert {data} --to megatron --tokenizer NAME --out DIR`"
        )
    recorded = Manifest.read(data).tokenizer
    # A tokenizer.json is copied into the folder, so that the folder can move to another machine.
    if recorded.name == TOKENIZER_FILE:
        for name in (TOKENIZER_FILE, CONFIG_FILE):
            inside(data, name)
        tokenizer: Tokenizer = HuggingFaceTokenizer(data / TOKENIZER_FILE)
    else:
        tokenizer = tokenizer_named(recorded.name)
    if not tokenizer.info.same_as(recorded):
        raise DataError(
            f"{data}: made with the tokenizer {recorded}, but here that is {tokenizer.info}; "
            "restore the vocabulary or prepare the text again"
        )
    return tokenizer
