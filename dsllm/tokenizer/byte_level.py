"""Tokens as byte-level tokenizers of Hugging Face spell them, a character for each byte: b" the" is "Ġthe"."""


def _characters() -> list[str]:
    """Of each byte: itself where it can be seen, else a character from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(hidden)) for byte in range(256)]


CHARACTERS = _characters()


def spelled(token: bytes) -> str:
    """The characters that stand for a token's bytes."""
    return "".join(CHARACTERS[byte] for byte in token)
