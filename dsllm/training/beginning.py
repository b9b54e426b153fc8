"""Where a run begins: with initial weights by its seed, or with those of a pre-trained model (`init_from`).

The sizes of a pre-trained model become those of the run's `model` section where the section leaves them open. A run
that resumes has them from its checkpoint, and needs that model no more.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from dsllm.config import RunConfig
from dsllm.errors import CheckpointError, ConfigError, DataError, shown
from dsllm.models.gpt2 import GPT2Config
from dsllm.models.language_model import LanguageModel
from dsllm.models.lora import is_adapter
from dsllm.registry import MODELS
from dsllm.section import raise_problems, validate
from dsllm.tokenizer import Tokenizer
from dsllm.training.checkpoints import Checkpoint, complete_checkpoints
from dsllm.training.pretrained import Pretrained, vocabulary_of
from dsllm.training.tensors import Fill, initial_values


def with_sizes(config: RunConfig, fresh: bool) -> RunConfig:
    """The configuration with the sizes of `init_from`, or those that the run began with if it resumes.

    Raises `UserError` if that model is none, or not the one that the section describes.
    """
    if config.init_from is None:
        return config
    section = MODELS[config.model.name].Config  # without a `model` section in the file it is a bare one
    if not issubclass(section, GPT2Config):
        raise ConfigError(f"model.name = {config.model.name}: init_from begins with a GPT-2; take gpt2 or progressive")
    given = config.model.model_dump(include=config.model.model_fields_set)
    sizes = None if fresh else _asked(config)
    if sizes is None:
        sizes = Pretrained.open(config.init_from).sizes
        _check_given(config.init_from, given, sizes)
    model, problems = validate(section, {**sizes, **given}, "model")
    raise_problems(problems)
    return config.model_copy(update={"model": model})


def _asked(config: RunConfig) -> Mapping[str, Any] | None:
    """The `model` section that the run in the folder began with, if there is one."""
    for path in reversed(complete_checkpoints(config.run_dir)):
        with suppress(CheckpointError):
            return Checkpoint.read(path).asked
    return None


def _check_given(name: str, given: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    for key, size in sizes.items():
        value = given.get(key, size)
        if value is None or value == size or (key == "context" and value < size):
            continue
        raise ConfigError(f"model.{key} = {value}: {name} has {shown(size)}; leave it out")


def check_tokens(pretrained: Pretrained, tokenizer: Tokenizer) -> None:
    """Raises `DataError` if the data were made with other tokens than the pre-trained model knows."""
    theirs = vocabulary_of(pretrained.folder)
    if theirs is None:  # then the number of tokens has to do: theirs, or rounded up as here
        rows = int(pretrained.sizes["vocab_size"])
        if rows not in range(tokenizer.size, (tokenizer.size + 127) // 128 * 128 + 1):
            raise DataError(
                f"{pretrained.folder}: its vocabulary has {rows:,} tokens, and the data's tokenizer ({tokenizer.name}) "
                f"{tokenizer.size:,}; prepare the text with the tokens that it was trained on"
            )
        return
    for token, number in tokenizer.spellings().items():
        if theirs.get(token, number) != number or (token not in theirs and number < pretrained.sizes["vocab_size"]):
            raise DataError(
                f"{pretrained.folder}: token {number} of the data's tokenizer ({tokenizer.name}) is {shown(token)}, "
                f"which is {theirs.get(token, 'none')} there; prepare the text with --tokenizer {pretrained.folder}"
            )


def first_values(config: RunConfig, model: LanguageModel, tokenizer: Tokenizer) -> Fill:
    """What fills a new run's parameters. What `init_from` has not, adapters and a second column, begins as always.

    Raises `UserError` if it has not all the rest.
    """
    initial = initial_values(model, config.train.seed)
    if config.init_from is None:
        return initial
    pretrained = Pretrained.open(config.init_from)
    check_tokens(pretrained, tokenizer)
    own = {name for name, _ in model.named_parameters() if is_adapter(name) or name.startswith("column.")}
    for name, parameter in model.named_parameters():
        if name not in own:
            pretrained.check(name, parameter.shape)

    def fill(name: str, tensor: Tensor) -> None:
        initial(name, tensor) if name in own else pretrained.fill(name, tensor)

    return fill
