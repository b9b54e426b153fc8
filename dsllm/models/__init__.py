"""Language models by name, built from a run's `model` section.

    model = build_model(GPT2Config(n_layer=2, n_head=4, n_embd=64, context=128, vocab_size=256))

A model of your own is a subclass of `language_model.LanguageModel`, made known by `@MODELS.register("mine")`.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from dsllm.config import ModelConfig
from dsllm.registry import MODELS
from dsllm.section import raise_problems, validate

if TYPE_CHECKING:
    from dsllm.models.language_model import LanguageModel

__all__ = ["MODELS", "build_model", "skeleton"]


def build_model(config: ModelConfig) -> "LanguageModel":
    """The model that `config.name` names, freshly initialised from torch's random state, on the CPU in fp32.

    Raises `ConfigError` if there is no such model, its fields do not fit it, or the vocabulary's size is open.
    """
    model_class = MODELS[config.name]
    fitting, problems = validate(model_class.Config, config.model_dump(), "model")
    raise_problems(problems)
    model: LanguageModel = model_class(fitting)
    return model


def skeleton(config: ModelConfig) -> "LanguageModel":
    """The model on the meta device, shapes without memory, if it says how each parameter begins; else as built."""
    from dsllm.models.language_model import LanguageModel

    if MODELS[config.name].initial is LanguageModel.initial:
        return build_model(config)
    with torch.device("meta"), Unfilled():
        model = build_model(config)
    return model if not list(model.buffers()) else build_model(config)


class Unfilled(TorchFunctionMode):
    """Leaves out `torch.nn.init`: drawing on the meta device fills nothing and imports torch's compiler, a second."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
