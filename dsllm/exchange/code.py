"""The code of a model that transformers does not have, as files of an exported folder.

They are the very files that train it. Only what they import from each other is written as a folder's files do it:

    from dsllm.models.levels import Levels     →     from .levels import Levels
"""

import re
from importlib.util import find_spec
from pathlib import Path

CONFIGURATION, MODELING = "configuration_conv_attention", "modeling_conv_attention"
MODULES = (
    f"dsllm.exchange.{CONFIGURATION}",
    f"dsllm.exchange.{MODELING}",
    "dsllm.models.levels",
    "dsllm.models.resampling",
    "dsllm.models.layers",
)


def files() -> dict[str, str]:
    """File names and contents."""
    return {f"{module.rpartition('.')[2]}.py": _alone(_source(module)) for module in MODULES}


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _alone(source: str) -> str:
    return re.sub(r"^from dsllm\.(?:\w+\.)*(\w+) import", r"from .\1 import", source, flags=re.MULTILINE)
