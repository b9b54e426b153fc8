"""Names for parts that a user may add to: models today, growth operators and policies beside them.

    MODELS = Registry("model", {"gpt2": "dsllm.models.gpt2:GPT2"})
    MODELS["gpt2"]                      imports dsllm.models.gpt2, and only now
    @MODELS.register("mine")            a user's own, known in the script that says so
    MODELS["my_package.mine:Mine"]      a user's own, known wherever its package can be imported

A configuration names parts by these names, so a run's saved one says where they lie.
"""

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Generic, TypeVar

from dsllm.errors import ConfigError, shown

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to a thing, or to `module:attribute` where it lies until it is asked for."""

    def __init__(self, kind: str, built_in: dict[str, str]):
        self.kind = kind
        self._entries: dict[str, T | str] = dict(built_in)

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the thing known by `name`. Raises `ConfigError` if the name is taken by another."""

        def add(thing: T) -> T:
            # A built-in part that registers itself is met first as the text that says where it lies.
            home = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__name__', '')}"
            if self._entries.get(name, home) not in (home, thing):
                raise ConfigError(f"{self.kind} {name!r} is registered already; take another name")
            self._entries[name] = thing
            return thing

        return add

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __getitem__(self, name: str) -> T:
        """The thing of that name. Raises `ConfigError`, with the nearest name, if there is none."""
        entry = self._entries.get(name, name if ":" in name else None)
        if entry is None:
            close = get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(self.names())}"
            raise ConfigError(f"{self.kind} {shown(name)}: no such {self.kind}; {hint}")
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            try:
                entry = getattr(import_module(module), attribute)
            # TypeError: `.mine:Mine`, which is relative to nothing.
            except (ImportError, AttributeError, ValueError, TypeError) as error:
                raise ConfigError(f"{self.kind} {shown(name)}: cannot be imported ({error}); see PYTHONPATH") from error
            if name in self._entries:  # what is only asked for by its place gets no name by that
                self._entries[name] = entry
        return entry


MODELS: "Registry[Any]" = Registry(
    "model",
    {
        "conv_attention": "dsllm.models.conv_attention:ConvAttention",
        "gpt2": "dsllm.models.gpt2:GPT2",
        "progressive": "dsllm.models.progressive:Progressive",
    },
)
"""Model classes: subclasses of `LanguageModel`, each with its section as the attribute `Config`."""

OPERATORS: "Registry[Any]" = Registry(
    "operator",
    {
        name: f"dsllm.growth.operators:{name}"
        for name in ("untie", "interpose", "stack", "middle", "zero_init", "random", "dropin", "mixture", "lateral")
    },
)
"""What a grown model is: functions under `@dsllm.growth.operator`."""

POLICIES: "Registry[Any]" = Registry(
    "policy",
    {
        name: f"dsllm.growth.policies.{name}:{name}"
        for name in ("schedule", "plateau", "fitting_risk", "g_stack", "race")
    },
)
"""When a model grows: functions under `@dsllm.growth.policy`."""
