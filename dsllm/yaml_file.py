"""Configuration files in YAML: read as plain values, with errors in words."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from dsllm.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"


class _StandsTwice(yaml.YAMLError):
    """A key of a mapping; YAML itself would take the last one without a word."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise _StandsTwice(f"line {node.value[number][0].start_mark.line + 1}: {key} stands twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, examples: str = "launch/recipes/") -> dict[str, Any]:
    """A YAML file's mapping; `ConfigError` if it is missing, is no mapping, or says a key twice.

    `examples`: where such files are, for the message.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        near = get_close_matches(path.name, [file.name for file in path.parent.glob("*.y*ml")], n=1)
        cure = f"did you mean {path.parent / near[0]}?" if near else f"give a file as in {examples}"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {cure}") from None
    except _StandsTwice as error:
        raise ConfigError(f"{path}, {error}; take one of the two out") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:  # TypeError: a mapping for a key
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no sections; see {examples} for the form")
    return values
