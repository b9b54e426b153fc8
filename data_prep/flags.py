"""What the commands share: flags as they stand, numbers in them, and a word that was meant."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from fire.decorators import SetParseFns

from dsllm.errors import DataError


@dataclass(frozen=True)
class Action:
    """What a command will do."""

    do: Callable[[], None]


def value(flag: str) -> Callable[[str], str]:
    """Takes a flag's value as it stands, where fire would read `12` or `a,b` as Python."""

    def parse(value: str) -> str:
        # What fire passes for a flag that stands there without a value.
        if value in ("True", ""):
            raise DataError(f"--{flag}: needs a value; see `python -m data_prep COMMAND --help`")
        return value

    return parse


def values(*flags: str) -> Callable[[Callable[..., Action]], Callable[..., Action]]:
    """Decorator of a command: these flags of it come as text, as they stand."""
    return SetParseFns(**{flag: value(flag) for flag in flags})


def whole(flag: str, value: str | int | None) -> int | None:
    """A flag's number, None if it was not given; raises `DataError` if it is none."""
    if value is None:
        return None
    try:
        return int(str(value).replace("_", ""))
    except ValueError:
        raise DataError(f"--{flag} {value}: not a whole number; write it in digits, as in 1000") from None


def closest(name: str, known: list[str]) -> str:
    """The name that was meant, or all of them."""
    return next(iter(get_close_matches(name, known, n=1)), ", ".join(known))
