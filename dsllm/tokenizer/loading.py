"""A tokenizer by its name, or the one that made a data folder."""

from difflib import get_close_matches
from pathlib import Path

import tiktoken

from dsllm.data.foreign import is_llmc
from dsllm.data.manifest import MANIFEST_NAME, Manifest
from dsllm.errors import DataError
from dsllm.tokenizer.base import Tokenizer
from dsllm.tokenizer.byte_pair import gpt2, tiktoken_encoding
from dsllm.tokenizer.bytes import ByteTokenizer
from dsllm.tokenizer.hugging_face import TOKENIZER_FILE, HuggingFaceTokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """
    Args:
        name: gpt2, bytes, another encoding of tiktoken, or the path of a `tokenizer.json` or of its folder.

    Raises:
        DataError: nothing of that name, a file that is no tokenizer, or ranks that cannot be downloaded.
    """
    if name == "gpt2":
        return gpt2()
    if name == "bytes":
        return ByteTokenizer()
    known = ["gpt2", "bytes", *sorted(set(tiktoken.list_encoding_names()) - {"gpt2"})]
    if name in known:
        return tiktoken_encoding(name)
    path = Path(name)
    if path.is_dir():
        path = path / TOKENIZER_FILE
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path)
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"take {', '.join(known)} or the path of a {TOKENIZER_FILE}"
    raise DataError(f"tokenizer {name!r}: no such tokenizer; {hint}")


def tokenizer_of(data: Path) -> Tokenizer:
    """The tokenizer that made a data folder, checked by its hash; GPT-2's for a file of llm.c.

    Raises:
        DataError: no manifest, a vocabulary other than then, or what `load_tokenizer` raises.
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
    tokenizer = load_tokenizer(str(data / TOKENIZER_FILE) if recorded.name == TOKENIZER_FILE else recorded.name)
    if not tokenizer.info.same_as(recorded):
        raise DataError(
            f"{data}: made with the tokenizer {recorded}, but here that is {tokenizer.info}; "
            "restore the vocabulary or prepare the text again"
        )
    return tokenizer
