"""The command line of the launch scripts: a configuration file, and any of its keys.

--config launch/recipes/demo_gpt2.yaml --train.steps 100 --model.n_layer=2 --fresh
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from dsllm.config import GrowthConfig, RunConfig
from dsllm.errors import ConfigError
from dsllm.growth.parts import describe_parts
from dsllm.registry import MODELS, OPERATORS, POLICIES
from dsllm.section import describe, describe_key, section_within
from dsllm.yaml_file import parse_yaml

FRESH, DRY_RUN = "--fresh", "--dry_run"
LAUNCHER = "local_rank"
"""Given to every rank by the `deepspeed` launcher; the environment says the same."""


@dataclass(frozen=True)
class Arguments:
    """What stood on the command line."""

    config: RunConfig
    fresh: bool
    """Set aside what the run's folder holds, and start over."""
    dry_run: bool = False
    """Say what the run will take, and end."""


def parse(argv: Sequence[str], usage: str) -> Arguments:
    """Read `argv` (without the program's name). `--help` prints `usage` and every option, and exits.

    Raises `ConfigError` with all problems of the configuration, or the first of the command line itself.
    """
    path, flags, overrides = None, set(), []
    words = iter(argv)
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(f"{word!r}: an option was expected, as in --train.steps 100; see --help")
        key, equals, value = word[2:].partition("=")
        if key == "help":
            sys.stdout.write("\n".join(help_lines(usage)) + "\n")
            raise SystemExit(0)
        if word in (FRESH, DRY_RUN):
            flags.add(word)
            continue
        if not equals:
            value = _value(words, key)
        if key == "config":
            path = value
        elif key != LAUNCHER:
            overrides.append(f"{key}={value}")
    if path is None:
        raise ConfigError("--config: missing; give a recipe, as in --config launch/recipes/demo_gpt2.yaml")
    return Arguments(RunConfig.from_file(path, overrides), FRESH in flags, DRY_RUN in flags)


class CommandLine(argparse.ArgumentParser):
    """argparse with whole names of options, and with errors of one line as everywhere."""

    def __init__(self, description: str | None, epilog: str | None = None):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=form, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: take a whole number from 1")
    return int(text)


def named_path(text: str) -> Path:
    """A path that is not empty, for argparse: Path("") would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("empty; name a path")
    return Path(text)


def yaml_value(text: str) -> Any:
    """A value in YAML, as everywhere on the command line, for argparse."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{text}: no YAML value; quote it") from None


def help_lines(usage: str) -> Iterable[str]:
    """The usage, and a line or two for every key of the configuration."""
    yield usage
    yield ""
    for name in RunConfig.model_fields:
        section = section_within(RunConfig, name)
        if name != "model" and section is None:
            yield from describe_key(RunConfig, name, "")
        if name == "model":
            for model in MODELS.names():
                yield f"\nmodel, with --model.name {model}: {' '.join((MODELS[model].Config.__doc__ or '').split())}"
                yield from describe(MODELS[model].Config, "model")
        elif section is not None:
            yield f"\n{name}: {' '.join((section.__doc__ or '').split())}"
            yield from describe(section, name)
            if section is GrowthConfig:
                for registry in (OPERATORS, POLICIES):
                    yield from describe_parts(registry, f"growth.{registry.kind}")


def _value(words: Iterable[str], key: str) -> str:
    for word in words:
        return word
    raise ConfigError(f"--{key}: a value must follow it")
