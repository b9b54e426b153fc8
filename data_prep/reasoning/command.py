"""`python -m data_prep reasoning`: a task, chain lengths and a folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.flags import Action, closest, values, whole
from data_prep.inspection import summary
from data_prep.reasoning import TASKS
from data_prep.reasoning.folder import make_problems
from data_prep.reasoning.request import ProblemRequest
from dsllm.data.manifest import Manifest
from dsllm.errors import DataError
from dsllm.section import validate

LONGEST = 65_535
"""What a depth can say."""


@values("task", "out", "lengths", "beyond", "documents", "held_out", "seed", "vocabulary", "options")
def reasoning(
    task: str,
    out: str,
    lengths: str = "1-12",
    beyond: str | None = None,
    documents: str = "100000",
    held_out: str = "500",
    seed: str = "0",
    vocabulary: str = "small",
    options: str | None = None,
    fresh: bool = False,
) -> Action:
    """Make a data folder of problems with chains of known length, each with its labels.

    Args:
        task: perm_chain, vars_chain, pointer_chase, p_hop, variable_assignment, igsm_lite or addition.
        out: The folder to make.
        lengths: Chain lengths to train on, as in 1-12, as many problems of each.
        beyond: Longer chains, as in 13-24, in a split of their own.
        documents: Problems to train on, all lengths together.
        held_out: Problems of each length in val, test and beyond.
        seed: Of the problems; another seed makes others.
        vocabulary: small (a symbol for each word of the task) or, for tasks written in characters, bytes.
        options: The task's own, as in values=5,functions=16; a name that is none of them lists them.
        fresh: Replace what the folder holds.
    """
    if task not in TASKS:
        raise DataError(f"--task {task}: no such task; take {closest(task, list(TASKS))}")
    chosen, problems = validate(TASKS[task], _options(options), at="--options")
    if chosen is None:
        raise DataError("\n".join(problem.replace("--options.", "--options ") for problem in problems))
    request = ProblemRequest(
        task=chosen,
        lengths=_range("lengths", lengths),
        beyond=_range("beyond", beyond) if beyond else range(0),
        documents=whole("documents", documents) or 0,
        held_out=whole("held_out", held_out) or 0,
        seed=whole("seed", seed) or 0,
        vocabulary=vocabulary,
    )
    request.check()

    def do() -> None:
        progress = make_problems(request, Path(out), fresh=fresh)
        if progress is None:
            print(f"{out}: already complete; nothing to do")
        else:
            rates = progress.rates
            print(
                f"{rates['documents']:,} problems, {rates['tokens']:,} tokens in {rates['seconds']:.1f} s: "
                f"{rates['documents'] / rates['seconds']:,.0f} problems/s, "
                f"{rates['tokens_per_second'] / 1e6:.2f}M tokens/s"
            )
        print(summary(Path(out)))
        print("".join(_scarce(request, Manifest.read(Path(out)))), end="")

    return Action(do)


def _scarce(request: ProblemRequest, manifest: Manifest) -> Iterator[str]:
    """A line for each split that has fewer problems of some lengths than were asked for."""
    problems: Any = manifest.source["problems"]
    for split, length, count in request.wanted():
        found = problems[split].get(str(length), 0)
        if found < count:
            yield f"{split}, chains of {length}: {found:,} of {count:,} problems, as there are no more that differ\n"


def _range(flag: str, value: str) -> range:
    """`3-12`, or `7` alone."""
    first, _, last = value.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        low, high = 0, 0
    if not 1 <= low <= high <= LONGEST:
        raise DataError(
            f"--{flag} {value}: no range of chain lengths; give one within 1-{LONGEST}, as in --{flag} 1-12"
        )
    return range(low, high + 1)


def _options(value: str | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in (value or "").strip("{}[]() ").split(",") if pair.strip()]
    for key, equals, _ in pairs:
        if not equals:
            raise DataError(f"--options {value}: {key} has no value; give them as in --options values=5,functions=16")
    found: dict[str, str] = {}
    for key, _, text in pairs:
        if key.strip() in found:
            raise DataError(f"--options {value}: {key.strip()} stands twice; take one of the two out")
        found[key.strip()] = text.strip()
    return found
