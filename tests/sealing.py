"""Checkpoints that a test changes by hand and then vouches for: what a bug would leave, not a bad disk."""

import json
from pathlib import Path
from typing import Any

from dsllm.training.marker import MARKER, files_in, sealed


def reseal(checkpoint: Path, **changes: Any) -> None:
    """Write the marker anew, for the files as they are now."""
    facts = json.loads((checkpoint / MARKER).read_text())
    facts.pop("checksum", None)
    (checkpoint / MARKER).write_bytes(sealed({**facts, **files_in(checkpoint), **changes}))
