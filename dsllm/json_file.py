"""JSON from outside, with one kind of error for all that can be wrong with it.

parse_json('{"step": 3}')       {"step": 3}
parse_json("[" * 100_000)       ValueError: nested too deep
"""

import json
from typing import Any


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text. Raises `ValueError` if it is none, is no UTF-8, or is nested too deep to read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None
