"""What every tokenizer offers. A vocabulary is a table from id to bytes; text is always taken literally.

A text that contains the characters `<|endoftext|>` is encoded as those characters (tiktoken's `encode_ordinary`): only
the preparation puts end-of-text tokens into a stream.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from dsllm.data.indexed import token_dtype
from dsllm.data.manifest import TokenizerInfo
from dsllm.tokenizer.byte_level import spelled

REPLACEMENT = "\ufffd"


class Tokenizer(ABC):
    """A vocabulary and the rule by which it cuts text."""

    name: str
    """As given to `--tokenizer`; for a tokenizer.json its file name."""
    size: int
    """Symbols of the vocabulary; every id is below it."""
    end_of_text: int
    """Id of the token that ends a document."""
    vocab_sha256: str
    """Equal for two tokenizers if they give every text the same tokens."""

    @property
    def dtype(self) -> np.dtype:
        """The type of the token files: uint16 for at most 65,536 symbols, else int32."""
        return token_dtype(self.size)

    @property
    def info(self) -> TokenizerInfo:
        """What a manifest records."""
        return TokenizerInfo(
            name=self.name, size=self.size, end_of_text=self.end_of_text, vocab_sha256=self.vocab_sha256
        )

    @abstractmethod
    def encode(self, text: str) -> npt.NDArray[np.integer]:
        """The tokens of a text, shape (n,); lone surrogates become U+FFFD."""

    def encode_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
        """The tokens of several texts one after the other, shape (sum of sizes,), and their sizes, shape (texts,).

        Safe to call from several threads at once.
        """
        return concatenated([self.encode(text) for text in texts])

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; what is no UTF-8, and each id outside of the vocabulary, shows as U+FFFD."""

    @abstractmethod
    def spellings(self) -> dict[str, int]:
        """All tokens by their spelling in a `tokenizer.json`, special ones included."""

    @abstractmethod
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each token stands for, shape (size,); 0 for end-of-text and other special tokens."""


class TableTokenizer(Tokenizer):
    """A tokenizer whose tokens are plain byte strings, so that text is their concatenation."""

    def __init__(self, name: str, vocabulary: dict[int, bytes], special: dict[str, int], rule: str) -> None:
        """
        Args:
            name: as given to `--tokenizer`.
            vocabulary: id to bytes, without special tokens.
            special: special token to id; must hold "<|endoftext|>".
            rule: how text is cut before the vocabulary applies; part of the hash.
        """
        self.name = name
        self.end_of_text = special["<|endoftext|>"]
        self.size = max(max(vocabulary), *special.values()) + 1
        self.vocab_sha256 = _hash(vocabulary, rule)
        self._text_of = vocabulary | {id: token.encode() for token, id in special.items()}
        self._special = frozenset(special.values())

    def decode(self, ids: Iterable[int]) -> str:
        unknown = REPLACEMENT.encode()
        return b"".join(self._text_of.get(int(id), unknown) for id in ids).decode("utf-8", errors="replace")

    def spellings(self) -> dict[str, int]:
        special = self._special
        return {(text.decode() if id in special else spelled(text)): id for id, text in self._text_of.items()}

    def token_bytes(self) -> npt.NDArray[np.int64]:
        counts = np.zeros(self.size, np.int64)
        for id, content in self._text_of.items():
            if id not in self._special:
                counts[id] = len(content)
        return counts


def _hash(vocabulary: dict[int, bytes], rule: str) -> str:
    digest = sha256(rule.encode())
    digest.update(b"".join(b"%d %d %b" % (id, len(token), token) for id, token in sorted(vocabulary.items())))
    return digest.hexdigest()


def concatenated(documents: Sequence[npt.NDArray[np.integer]]) -> tuple[npt.NDArray, npt.NDArray[np.int64]]:
    """Arrays one after the other, and their sizes."""
    sizes = np.fromiter(map(len, documents), np.int64, len(documents))
    return (np.concatenate(documents) if documents else np.empty(0, np.uint32)), sizes


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates, which UTF-8 cannot hold, as U+FFFD; tiktoken's way."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
