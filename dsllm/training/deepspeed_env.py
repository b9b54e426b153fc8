"""The file `.deepspeed_env`: variables that DeepSpeed's launcher sets on every host, and the mistakes it lets pass.

    OMP_NUM_THREADS=8
    NCCL_DEBUG=WARN             no quotes, no blank line, no comment, not this one either

It is read from the home and from the working directory of the host that launches, the latter winning. DeepSpeed
splits each line at its first `=` and writes `export NAME=VALUE; …` in front of the command that starts training: a line
without `=` ends the launcher in a ValueError, the export of `# A=1` makes a comment of all that follows, and a value
with a quote is quoted once more.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from dsllm.errors import UserError, shown

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CURE = "write lines such as `NCCL_DEBUG=WARN`"


def deepspeed_env_files(environ: Mapping[str, str] | None = None) -> list[Path]:
    """The files that the launcher would read here, in its order: a later one wins."""
    name = (os.environ if environ is None else environ).get("DS_ENV_FILE", ".deepspeed_env")
    paths = dict.fromkeys(Path(os.path.abspath(folder / name)) for folder in (Path("~").expanduser(), Path()))
    return [path for path in paths if path.is_file()]


def read_deepspeed_env(path: Path) -> dict[str, str]:
    """The variables by name, as every host would get them.

    Raises:
        UserError: the file cannot be read, or every line that DeepSpeed would stumble over or misunderstand.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"{path}: {reason}; {_CURE}, or remove the file") from None
    variables: dict[str, str] = {}
    problems = []
    # Split as DeepSpeed does: `splitlines` would also break at characters that it keeps.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if problem := _problem(line.strip(), name, equals, value):
            problems.append(f"line {number} {problem}")
        elif name in variables:
            problems.append(f"line {number} sets {name} again, keep one line for each variable")
        else:
            variables[name] = value
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return variables


def _problem(line: str, name: str, equals: str, value: str) -> str | None:
    if not line:
        return "is blank, take it out"
    if line.startswith("#"):
        return f"is the comment {shown(line)}, take it out"
    if not equals:
        return f"is {shown(line)}, write it as NAME=VALUE"
    if not _NAME.fullmatch(name):
        return f"names the variable {shown(name)}, take letters, digits and _, without `export`"
    if not value.isprintable():
        return f"gives {name} a control character in {shown(value)}, take it out"
    if any(quote in value for quote in "'\"`"):
        return f"gives {name} a quote in {shown(value)}, write the value without; DeepSpeed quotes it by itself"
    if re.search(r"\s#", value):
        return f"gives {name} a comment as part of its value {shown(value)}, take it out"
    return None
