"""Our tokenizers as transformers has them: a `tokenizer.json` and its configuration, the same tokens for every text."""

import shutil
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from dsllm.errors import DataError
from dsllm.exchange.libraries import transformers
from dsllm.tokenizer import Tokenizer
from dsllm.tokenizer.byte_level import spelled
from dsllm.tokenizer.byte_pair import BytePairTokenizer
from dsllm.tokenizer.bytes import ByteTokenizer
from dsllm.tokenizer.hugging_face import TOKENIZER_FILE, HuggingFaceTokenizer

END_OF_TEXT = "<|endoftext|>"


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write the tokenizer's files; `context` is the most tokens that its model reads.

    Raises `DataError` for a tokenizer of a kind that has no such form.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        for file in tokenizer.files:
            shutil.copyfile(file, folder / file.name)
        backend = Backend.from_file(str(folder / TOKENIZER_FILE))
        end_of_text = backend.id_to_token(tokenizer.end_of_text)
    elif isinstance(tokenizer, BytePairTokenizer):
        backend, end_of_text = byte_pair_backend(tokenizer), END_OF_TEXT
    elif isinstance(tokenizer, ByteTokenizer):
        backend, end_of_text = byte_backend(tokenizer), END_OF_TEXT
    else:
        raise DataError(f"tokenizer {tokenizer.name}: there is no way to write it as a {TOKENIZER_FILE}")
    fast = transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end_of_text,
        eos_token=end_of_text,
        unk_token=end_of_text,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)


def byte_pair_backend(tokenizer: BytePairTokenizer) -> Backend:
    """One of tiktoken's encodings by the `tokenizers` package.

    Its model wants merges, pairs of tokens in the order of their making, where tiktoken has ranks of what they make.
    """
    special = tokenizer.encoding._special_tokens
    vocabulary = {spelled(token): rank for token, rank in tokenizer.ranks.items()} | special
    merges = [
        (spelled(first), spelled(second))
        for token in sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
        if len(token) > 1
        for first, second in [parts(token, tokenizer.ranks)]
    ]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    pattern = pre_tokenizers.Split(Regex(tokenizer.encoding._pat_str), behavior="isolated", invert=False)
    return _byte_level(backend, [pattern], special)


def byte_backend(tokenizer: ByteTokenizer) -> Backend:
    """A symbol for each byte."""
    special = {END_OF_TEXT: tokenizer.end_of_text}
    vocabulary = {spelled(bytes([byte])): byte for byte in range(256)} | special
    return _byte_level(Backend(models.BPE(vocab=vocabulary, merges=[])), [], special)


def _byte_level(backend: Backend, cuts: list[pre_tokenizers.PreTokenizer], special: dict[str, int]) -> Backend:
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, spelling])
    backend.decoder = decoders.ByteLevel()
    names = sorted(special, key=special.__getitem__)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return backend


def parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens of which the byte-pair encoding makes this one, last of all."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        joined = [ranks.get(a + b, ranks[token]) for a, b in pairwise(pieces)]
        at = joined.index(min(joined))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces[0], pieces[1]
