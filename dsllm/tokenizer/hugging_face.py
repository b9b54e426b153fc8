"""Any `tokenizer.json` of Hugging Face, by the `tokenizers` package.

Which token ends a document stands in the `tokenizer_config.json` beside it, as `eos_token`; without that file a token
of one of the usual names is taken. The bytes of a token follow from the decoder: byte-level ones spell one byte per
character (`Ġthe` is 4), the others are measured by decoding.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend

from dsllm.data.files import os_errors_named
from dsllm.errors import DataError, shown
from dsllm.json_file import parse_json
from dsllm.tokenizer.base import REPLACEMENT, Tokenizer, concatenated, well_formed

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
MOST_SYMBOLS = 2**24
"""As `model.vocab_size`."""
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "[SEP]")


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`.

    Raises:
        DataError: missing, not a tokenizer, or with no token to end a document.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        """`content`: what the file will hold, if it is not there yet."""
        self.path = Path(path)
        if content is None:
            with os_errors_named(self.path):
                content = self.path.read_bytes()
        with self._failures_named():
            self._definition = parse_json(content)
            self._backend = Backend.from_str(content.decode())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.name = TOKENIZER_FILE
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=-1) + 1
        if not 0 < self.size <= MOST_SYMBOLS:
            raise DataError(f"{path}: ids up to {self.size - 1:,}, no vocabulary has so many; save it again")
        self.end_of_text = self._end_of_text(vocabulary)
        self.vocab_sha256 = sha256(content).hexdigest()

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Within it what the backend raises becomes a `DataError`: plain exceptions, and panics, which are none."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, UnicodeEncodeError, TypeError):
            raise
        except BaseException as error:
            raise DataError(f"{self.path}: not a Hugging Face tokenizer.json ({error}); save it again") from None

    def _end_of_text(self, vocabulary: dict[str, int]) -> int:
        config = self.path.with_name(CONFIG_FILE)
        if config.exists():
            try:
                token = parse_json(config.read_bytes()).get("eos_token")
            except (OSError, ValueError, AttributeError) as error:
                raise DataError(f"{config}: not a tokenizer configuration ({error}); save it again") from None
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token in vocabulary:
                return vocabulary[token]
            if token is not None:
                raise DataError(f"{config}: eos_token {shown(token)} is not in {self.path.name}; name one that is")
        for token in END_OF_TEXT:
            if token in vocabulary:
                return vocabulary[token]
        raise DataError(
            f"{self.path}: no token to end a document with ({', '.join(END_OF_TEXT)}); "
            f'put a {CONFIG_FILE} with "eos_token" beside it'
        )

    @property
    def files(self) -> list[Path]:
        """What a data folder copies, so that it needs no other place."""
        return [file for file in (self.path, self.path.with_name(CONFIG_FILE)) if file.exists()]

    def encode(self, text: str) -> npt.NDArray[np.integer]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
        try:
            with self._failures_named():  # as of an unknown symbol that stands for itself alone
                encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # a lone surrogate is no string for it
            return self.encode_batch([well_formed(text) for text in texts])
        return concatenated([np.array(encoding.ids, np.uint32) for encoding in encodings])

    def decode(self, ids: Iterable[int]) -> str:
        text, run = "", []
        for id in [*map(int, ids), -1]:
            if 0 <= id < self.size:
                run.append(id)
                continue
            text += self._backend.decode(run, skip_special_tokens=False) + REPLACEMENT
            run = []
        return text[: -len(REPLACEMENT)]

    def spellings(self) -> dict[str, int]:
        found: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return found

    def token_bytes(self) -> npt.NDArray[np.int64]:
        counts = np.zeros(self.size, np.int64)
        byte_level = _mentions(self._definition.get("decoder"), "ByteLevel")
        added = {token["id"]: token for token in self._definition.get("added_tokens", [])}
        [anchor] = self._backend.encode("a", add_special_tokens=False).ids[-1:] or [0]
        before = len(self._backend.decode([anchor]).encode())
        for token, id in self._backend.get_vocab(with_added_tokens=True).items():
            if id in added:
                counts[id] = 0 if added[id]["special"] else len(token.encode())
            elif byte_level:
                counts[id] = len(token)
            elif len(token) == 6 and token.startswith("<0x"):
                counts[id] = 1
            else:
                counts[id] = len(self._backend.decode([anchor, id]).encode()) - before
        counts[self.end_of_text] = 0
        return counts


def _mentions(decoder: object, kind: str) -> bool:
    """Whether a decoder, or a part of a sequence of them, is of this kind."""
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == kind or any(_mentions(part, kind) for part in decoder.get("decoders", []))
