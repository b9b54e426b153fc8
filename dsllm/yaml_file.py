"""Configuration files in YAML: read as plain values, with errors in words.

parse_yaml("model: {n_layer: 2}")           {"model": {"n_layer": 2}}
parse_yaml("a: 1\\na: 2")                    an error: YAML itself would take the last one without a word
a: &a [x, x, …]                             an error too, where written out it would be larger than any
b: &b [*a, *a, …]                           configuration: ten such lines make ten billion values of 400 bytes
"""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from dsllm.errors import ConfigError, shortened

MERGE = "tag:yaml.org,2002:merge"
LARGEST = 1 << 15
"""Bytes of a file; the longest in launch/studies has 3,000. A file of tokens, given by mistake, is not even read."""
DEEPEST = 50
"""Levels of brackets and indentation."""
WRITTEN_OUT = 1 << 18
"""Characters and values of a file with each alias replaced by what it stands for."""


class _StandsTwice(yaml.YAMLError):
    """A key of a mapping."""


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # PyYAML looks for a key behind each bracket: five hundred of them one within the other take it seconds.
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError("nested too deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in known:
                raise _StandsTwice(f"line {key_node.start_mark.line + 1}: {key} stands twice")
            known.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The plain value of a YAML text. Raises `yaml.YAMLError`, whatever is wrong with it."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except Exception as error:  # what PyYAML stumbles over: a date of month 13, a mapping for a key, `!!bool maybe`
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


def _measure(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Characters and values of a node with aliases written out; raises `ValueError` if a file cannot mean that."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError(f"line {node.start_mark.line + 1}: an alias within what it stands for")
        return size
    known[id(node)] = None
    parts: Iterable[yaml.Node] = ()
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value:
            raise ValueError(f"line {node.start_mark.line + 1}: a NUL character")
        size = 1 + len(node.value.encode())  # ValueError: half of a surrogate pair
    else:
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        size = 1
    for part in parts:
        size += _measure(part, known)
        if size > WRITTEN_OUT:
            raise ValueError(f"line {node.start_mark.line + 1}: its aliases make it too large")
    known[id(node)] = size
    return size


def read_yaml(path: Path, examples: str = "launch/recipes/") -> dict[str, Any]:
    """A YAML file's mapping; `ConfigError` if it is missing, is no mapping, or says a key twice.

    `examples`: where such files are, for the message.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: more than {LARGEST:,} bytes, so no configuration; give a file as in {examples}")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = get_close_matches(path.name, _files_beside(path), n=1)
        cure = f"did you mean {path.parent / near[0]}?" if near else f"give a file as in {examples}"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {cure}") from None
    except _StandsTwice as error:
        raise ConfigError(f"{path}, {error}; take one of the two out") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({shortened(' '.join(str(error).split()), 500)}); mend the file") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no sections; see {examples} for the form")
    return values


def _files_beside(path: Path) -> list[str]:
    try:
        return [file.name for file in path.parent.glob("*.y*ml")]
    except OSError:  # the folder's name is too long, for one
        return []
