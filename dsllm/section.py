"""A typed section of the configuration, and how all its problems are said at once.

    class TrainConfig(Section):
        steps: PositiveInt = 1000
        \"\"\"Optimizer steps of the whole run.\"\"\"

    validate(TrainConfig, {"step": 3, "lr": -1}, at="train") -> (None, [
        "train.step: no such key; did you mean train.steps?",
        "train.lr = -1: input should be greater than 0"])

The string under a field is its documentation; `describe` prints it for `--help`.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from dsllm.errors import LONGEST_VALUE, ConfigError, shortened, shown

MOST_PROBLEMS = 50
"""That one message says: with more it is another kind of file."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are frozen, the string under a field documents it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Values that fit one by one but not together: pairs of a field's name and what is wrong with its cure.

        `lora.rank` names a field of the section within.
        """
        return iter(())

    @model_validator(mode="after")
    def _fits_together(self) -> "Section":
        problems = list(self.problems())
        if problems:
            text = "; ".join(f"{field}: {what}" for field, what in problems)
            valued = [(field, _plain(_within(self, field)), what) for field, what in problems]
            raise PydanticCustomError("together", "{text}", {"text": text, "problems": valued})
        return self


S = TypeVar("S", bound=Section)


def validate(section: type[S], values: Any, at: str) -> tuple[S | None, list[str]]:
    """The section made of `values`, or None and every problem as a line; `at` is the dotted place, "" for the top."""
    if not isinstance(values, Mapping):
        return None, [f"{at} = {shown(values)}: a section of keys and values is needed here"]
    try:
        return section.model_validate(dict(values)), []
    except ValidationError as error:
        lines = [line for details in _said_once(section, error.errors()) for line in _lines(section, details, at)]
        wrong = {str(details["loc"][0]) for details in error.errors() if details["loc"]}
        rest = {key: value for key, value in values.items() if key not in wrong}
        if len(rest) < len(values):
            # Whether values fit together is looked at once all are valid: so look again, without the wrong ones.
            _, more = validate(section, rest, at)
            lines += [line for line in more if not any(dotted(at, key) in line for key in wrong)]
        return None, lines


def dotted(at: str, key: str) -> str:
    """`train` and `lr` make `train.lr`; the top level has no prefix."""
    return f"{at}.{key}" if at else key


def leaves(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """The values of nested sections by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, dotted(at, key)) if isinstance(value, Mapping) else {dotted(at, key): value}
    return found


def unknown_key(at: str, key: str, known: list[str]) -> str:
    """The line for a key that does not exist, with the nearest one that does."""
    close = get_close_matches(key[:LONGEST_VALUE], known, n=1)
    others = f"known keys: {', '.join(sorted(known))}" if known else "there are none"
    hint = f"did you mean {dotted(at, close[0])}?" if close else others
    return f"{dotted(at, shortened(key, LONGEST_VALUE))}: no such key; {hint}"


def raise_problems(problems: list[str]) -> None:
    """Raise one `ConfigError` with all problems, or nothing if there are none."""
    if problems:
        count = f"{len(problems):,} problem" + ("s" if len(problems) > 1 else "")
        if len(problems) > MOST_PROBLEMS:
            problems = [*problems[:MOST_PROBLEMS], f"and {len(problems) - MOST_PROBLEMS:,} more"]
        raise ConfigError("\n  ".join([f"configuration: {count}", *problems]))


def describe(section: type[Section], at: str) -> Iterator[str]:
    """Two lines per field: its dotted key, type and default, and its documentation; sections within it follow."""
    for name in section.model_fields:
        within = section_within(section, name)
        if within is not None:
            yield from describe(within, dotted(at, name))
            continue
        yield from describe_key(section, name, at)


def describe_key(section: type[Section], name: str, at: str) -> Iterator[str]:
    """The two lines of one field that is no section."""
    field = section.model_fields[name]
    default = "null" if field.default is None else field.default
    yield f"  --{dotted(at, name)}  ({_kind(field.annotation)}; {'required' if field.is_required() else f'{default}'})"
    yield f"      {' '.join((field.description or '').split())}"


def _kind(annotation: Any) -> str:
    """A type as a user writes its values: `int | null`, `cosine | wsd`, `[str, ...]`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin in (Union, UnionType):
        return " | ".join(_kind(option) for option in inner)
    if origin is list:
        return f"[{_kind(inner[0])}, ...]"
    return "null" if annotation is NoneType else annotation.__name__.lower()


def _within(value: Any, field: str) -> Any:
    """The value of a dotted field of a section, or of a mapping in it; None if there is none."""
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value


def _as_given(values: Any, field: str, default: Any) -> Any:
    """The user's own value of a dotted field, as `[1, 2]` where the section holds `[1.0, 2.0]`."""
    for key in field.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return default
        values = values[key]
    return values


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Section) else value


def section_within(section: type[Section], key: str) -> type[Section] | None:
    """The type of a field that is a section itself, or may be one."""
    field = section.model_fields.get(key)
    options = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)


def _said_once(section: type[Section], errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Of a field that may be of several types, what is wrong with the one that the value has."""
    of_a_value = {_field(section, of) for of in errors if not of["type"].endswith("_type")}
    return [of for of in errors if not of["type"].endswith("_type") or _field(section, of) not in of_a_value]


def _field(section: type[Section], details: ErrorDetails) -> tuple[str, ...]:
    """The keys down to the field that an error is of; what follows them in `loc` is how its value was read."""
    keys: tuple[str, ...] = ()
    for part in map(str, details["loc"]):
        keys += (part,)
        within = section_within(section, part)
        if within is None:
            break
        section = within
    return keys


def _lines(section: type[Section], details: ErrorDetails, at: str) -> Iterator[str]:
    keys = [str(part) for part in details["loc"]]
    together = details["type"] == "together"
    while keys and (len(keys) > 1 or together) and (within := section_within(section, keys[0])):
        section, at = within, dotted(at, keys.pop(0))
    if together:
        for field, value, what in details["ctx"]["problems"]:
            given = shortened(f"{_as_given(details['input'], field, value)}", LONGEST_VALUE)
            yield f"{dotted(at, field)} = {given}: {what}"
    elif details["type"] == "extra_forbidden":
        yield unknown_key(at, keys[0], list(section.model_fields))
    elif details["type"] == "missing":
        yield f"{dotted(at, keys[0])}: missing; {section.model_fields[keys[0]].description or 'a value is needed'}"
    elif details["type"] == "dict_type":
        place = dotted(at, ".".join(keys))
        yield f"{place} = {shown(details['input'])}: keys and values are needed here, or {{}} for none"
    else:
        message = details["msg"].removeprefix("Value error, ")
        yield f"{dotted(at, keys[0])} = {shown(details['input'])}: {message[0].lower()}{message[1:]}"
