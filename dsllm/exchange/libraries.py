"""The libraries of the ecosystem, imported where they are used: training does without them."""

from importlib import import_module
from typing import Any

from dsllm.errors import DataError


def transformers() -> Any:
    """Hugging Face transformers; raises `DataError` if it is not installed."""
    return _library("transformers")


def peft() -> Any:
    """Hugging Face peft; raises `DataError` if it is not installed."""
    return _library("peft")


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(f"{name}: not installed ({error}); `pip install {name}`") from None
