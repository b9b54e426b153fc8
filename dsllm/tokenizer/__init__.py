"""Text to token ids and back, with no network for the default.

    tokenizer = load_tokenizer("gpt2")
    tokenizer.encode("Hello, world")        array([15496, 11, 995])
    tokenizer.decode([15496, 11, 995])      "Hello, world"
    tokenizer.token_bytes()[15496]          5: the UTF-8 bytes that bits per byte divide by

base.py                   what all tokenizers have in common
byte_pair.py, bytes.py    GPT-2 and tiktoken's other encodings; one symbol per byte
hugging_face.py           any `tokenizer.json`
loading.py                a tokenizer by name, or the one that made a data folder
"""

from dsllm.tokenizer.base import Tokenizer
from dsllm.tokenizer.loading import load_tokenizer, tokenizer_named, tokenizer_of

__all__ = ["Tokenizer", "load_tokenizer", "tokenizer_named", "tokenizer_of"]
