"""gigatoken as a faster way to tiktoken's tokens, held against tiktoken before and while it is used.

A group of documents is encoded in one call, with a mark between them. gigatoken lets go of Python's lock in its
calls for many texts alone, and there one tokenizer serves one thread at a time: so each thread has one of its own.

Before the first document it must give tiktoken's tokens for a page of difficult text; then, for the beginning of one
document of each group. tiktoken stays the definition: at the first difference the preparation starts over without
gigatoken, because what was written before may be wrong as well.
"""

import base64
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dsllm.tokenizer import Tokenizer
from dsllm.tokenizer.byte_pair import BytePairTokenizer

T = TypeVar("T")

SCHEMES = {"gpt2": "gpt2", "r50k_base": "gpt2", "cl100k_base": "gpt4", "o200k_base": "o200k"}
"""gigatoken's name for the rule by which an encoding cuts text."""
MARK = b"\x1c\x1d\x1e"
"""Ends a document, as a special token: separators of ASCII that text hardly ever holds. tiktoken encodes what does."""
SAMPLE_CHARACTERS = 4096
DIFFICULT = (
    "It's we'LL they'Ve DON'T 'tis  O'Neil's\n\n\n  def f(x):\n\t\treturn x**2 # ∑∫√ naïve café façade\r\n"
    "12345 1,234.5e-6 ٣٤٥ Ⅷ ½ 中文分词 日本語 한국어 עברית العربية ไทย"
    " 🤖👩‍👩‍👧🏽 \u200b\u00a0\u3000\ufeff\x00\x1f\x7f\x85\u2028 "
    "<|endoftext|> <|fim_prefix|> "
    + "a" * 500
    + " " * 500
    + "\n" * 100
    + "=" * 300
    + " \n \t \n"
    + "é" * 100
    + " end  "
)


class BatchEncoder(Protocol):
    """What turns texts into tokens; a tokenizer does, and so does `FastEncoder`."""

    def encode_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
        """Tokens of all texts, shape (sum of sizes,), and sizes, shape (texts,)."""


class DisagreementError(Exception):
    """gigatoken failed, or gave other tokens than tiktoken."""


class FastEncoder:
    """tiktoken's tokens by gigatoken.

    Args:
        tokenizer: the definition.
        scheme: gigatoken's name for its rule of cutting.

    Raises:
        ImportError: gigatoken is not installed.
        DisagreementError: its tokens are not tiktoken's.
    """

    def __init__(self, tokenizer: BytePairTokenizer, scheme: str) -> None:
        self._tokenizer, self._scheme = tokenizer, scheme
        self._ranks = b"".join(
            b"%b %d\n" % (base64.b64encode(token), rank) for token, rank in _by_rank(tokenizer.ranks)
        )
        self._idle: list[Any] = [self._backend()]
        self._check(DIFFICULT)

    def encode_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
        """As `Tokenizer.encode_batch`.

        Raises:
            DisagreementError: gigatoken failed, or gave other tokens than tiktoken for the sample.
        """
        tokens, sizes = self._encode([text.encode() for text in texts])
        if len(sizes) > len(texts):  # some text holds the mark
            return self._tokenizer.encode_batch(texts)
        if texts:
            # Some document of the group, chosen by what is in it, so that it is the same on each run.
            self._check(texts[len(tokens) % len(texts)][:SAMPLE_CHARACTERS])
        return tokens, sizes

    def _backend(self) -> Any:
        """One more tokenizer of gigatoken's, which takes the mark for the end of a text."""
        import gigatoken

        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
            file.write(self._ranks)
            file.flush()
            special = {MARK.decode(): self._tokenizer.end_of_text}
            return _guarded(lambda: gigatoken.Tokenizer.from_tiktoken(file.name, self._scheme, special))

    def _encode(self, contents: Sequence[bytes]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
        """Tokens (sum of sizes,) of texts in UTF-8, and sizes (texts,): more than texts, if some hold the mark."""
        import gigatoken

        try:
            backend = self._idle.pop()
        except IndexError:  # all are in use by other threads
            backend = self._backend()
        joined = b"".join(part for content in contents for part in (content, MARK))
        # Given a list it would first import awkward, for 0.2 s.
        source = gigatoken.BytesSource(joined)
        rows, _ = _guarded(lambda: backend.encode_batch_padded(source, 0, parallel=False))
        self._idle.append(backend)
        marked = rows[0]  # (tokens + texts,)
        is_mark = marked == self._tokenizer.end_of_text
        sizes = np.diff(np.flatnonzero(is_mark), prepend=-1) - 1
        if len(sizes) < len(contents) or sizes.sum() + len(sizes) != len(marked):
            raise DisagreementError(f"gigatoken finds {len(sizes)} documents where there are {len(contents)}")
        return marked[~is_mark], sizes

    def _check(self, text: str) -> None:
        found, sizes = self._encode([text.encode()])
        if len(sizes) == 1 and not np.array_equal(found, self._tokenizer.encode(text)):
            raise DisagreementError(f"gigatoken gives other tokens than tiktoken for {text[:40]!r}…")


def fastest_encoder(tokenizer: Tokenizer) -> tuple[BatchEncoder, str | None]:
    """The fastest way to a tokenizer's tokens, and why it is not gigatoken, if it could have been."""
    if not isinstance(tokenizer, BytePairTokenizer) or tokenizer.name not in SCHEMES:
        return tokenizer, None
    try:
        return FastEncoder(tokenizer, SCHEMES[tokenizer.name]), None
    except ImportError as error:
        return tokenizer, f"gigatoken cannot be loaded ({error})"
    except DisagreementError as error:
        return tokenizer, str(error)


def _by_rank(ranks: dict[bytes, int]) -> list[tuple[bytes, int]]:
    return sorted(ranks.items(), key=lambda item: item[1])


def _guarded(call: Callable[[], T]) -> T:
    """The call's result; a failure of gigatoken, a panic of its Rust code included, as `DisagreementError`."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic derives from BaseException
        raise DisagreementError(f"gigatoken failed ({type(error).__name__}: {error})") from None
