"""dsllm: grow language models while they train, across nodes, on DeepSpeed.

    from dsllm import RunConfig, build_model, load_model

The names are imported when they are first used, so that a command which needs no torch does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsllm.config import RunConfig
    from dsllm.models import build_model
    from dsllm.training.loading import load_model
    from dsllm.training.trainer import BaseTrainer

__version__ = "0.1.0"
__all__ = ["BaseTrainer", "RunConfig", "build_model", "load_model"]

_HOMES = {
    "RunConfig": "dsllm.config",
    "build_model": "dsllm.models",
    "load_model": "dsllm.training.loading",
    "BaseTrainer": "dsllm.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
