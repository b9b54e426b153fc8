"""One symbol per byte: "né" is 110 195 169, and end-of-text is 256.

With small models a vocabulary of 50,257 is most of the computation; 257 leave it to the layers.
"""

import numpy as np
import numpy.typing as npt

from dsllm.tokenizer.base import TableTokenizer, well_formed


class ByteTokenizer(TableTokenizer):
    """256 bytes and end-of-text."""

    def __init__(self) -> None:
        super().__init__("bytes", {byte: bytes([byte]) for byte in range(256)}, {"<|endoftext|>": 256}, rule="bytes")

    def encode(self, text: str) -> npt.NDArray[np.integer]:
        try:
            content = text.encode()
        except UnicodeEncodeError:
            content = well_formed(text).encode()
        return np.frombuffer(content, np.uint8).astype(np.uint16)
