"""The commands, by fire.

    python -m data_prep tokenize --source SRC --out DIR
    python -m data_prep verify DIR
    python -m data_prep inspect DIR
    python -m data_prep convert SRC --to nanogpt --out DIR
    python -m data_prep reasoning --task perm_chain --out DIR

fire calls a command before it has looked at all flags, and only then complains about one it does not know. So a command
here checks and returns what is to be done, and `main` does it once fire is content.
"""

import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import FrameType

import fire
from fire.core import FireExit

from data_prep.batches import ERROR_POLICIES
from data_prep.convert import FORMATS
from data_prep.convert import convert as convert_files
from data_prep.flags import Action, closest, values, whole
from data_prep.inspection import first_documents, summary
from data_prep.prepare import Request, prepare
from data_prep.reasoning.command import reasoning
from dsllm.data.verify import verify_folder
from dsllm.errors import DataError, user_errors_exit


def _shares(value: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in value.strip("()[] ").split(","))
    except ValueError:
        raise DataError(f"--splits {value}: not numbers; give train, val and test as in --splits 0.8,0.1,0.1") from None


@values(
    "source", "out", "tokenizer", "fields", "splits", "shard_tokens", "workers", "limit_documents", "errors",
    "revision", "subset", "source_split",
)  # fmt: skip
def tokenize(
    source: str,
    out: str,
    tokenizer: str = "gpt2",
    fields: str | None = None,
    splits: str = "0.8,0.1,0.1",
    shard_tokens: str = "100000000",
    workers: str | None = None,
    limit_documents: str | None = None,
    errors: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    source_split: str = "train",
    fresh: bool = False,
) -> Action:
    """Turn text into a data folder: token shards for train, val and test, and a manifest.

    Stopped at any moment, the same command goes on where it stopped and ends with the same bytes.

    Args:
        source: open-web-math, maths-college; installed:PACKAGE,...; a file, folder or quoted glob of .jsonl, .parquet
            (also .gz, .zst), text and source files; or ORG/NAME on the Hugging Face hub.
        out: The folder to make.
        tokenizer: gpt2, bytes, another encoding of tiktoken, or the path of a tokenizer.json.
        fields: Columns that make up a document's text, separated by commas; by default the preset's, else text.
        splits: Shares of train, val and test.
        shard_tokens: Tokens, all splits together, after which a set of shards ends. What a kill can cost is one set.
        workers: Threads that encode; by default one per core. Changes nothing in the result.
        limit_documents: Read no more than so many documents.
        errors: What to do with text that cannot be read: strict stops, replace puts U+FFFD for broken bytes, skip
            leaves the document out. By default strict; skip for installed packages.
        revision: Of a data set on the hub: branch, tag or commit.
        subset: Of a data set on the hub: which configuration.
        source_split: Of a data set on the hub: which of its splits to read.
        fresh: Replace an earlier preparation in the folder, once everything else was checked.
    """
    if errors is not None and errors not in ERROR_POLICIES:
        raise DataError(f"--errors {errors}: no such policy; take {', '.join(ERROR_POLICIES)}")
    names = tuple(name.strip() for name in fields.strip("()[] ").split(",") if name.strip()) if fields else None
    request = Request(
        source=source,
        tokenizer=tokenizer,
        fields=names or None,
        splits=_shares(splits),
        shard_tokens=whole("shard_tokens", shard_tokens) or 0,
        limit_documents=whole("limit_documents", limit_documents),
        errors=errors,  # type: ignore[arg-type]  # one of the policies, by the check above
        revision=revision,
        subset=subset,
        source_split=source_split,
    )
    threads = whole("workers", workers)

    def do() -> None:
        outcome = prepare(
            request, Path(out), workers=len(os.sched_getaffinity(0)) if threads is None else threads, fresh=fresh
        )
        if outcome.progress is None:
            print(f"{out}: already complete; nothing to do")
        else:
            rates = outcome.progress.rates
            print(
                f"{rates['documents']:,} documents, {rates['tokens']:,} tokens in {rates['seconds']:.1f} s: "
                f"{rates['megabytes_per_second']:.1f} MB/s, {rates['tokens_per_second'] / 1e6:.2f}M tokens/s"
            )
        print(summary(Path(out)))

    return Action(do)


@values("folder")
def verify(folder: str) -> Action:
    """Read a data folder from end to end and report everything that is wrong with it.

    Args:
        folder: The data folder.
    """

    def do() -> None:
        report = verify_folder(Path(folder))
        if not report.sound:
            raise DataError("\n".join([f"{folder}: {len(report.problems)} problems", *report.problems]))
        print(f"{folder}: {len(report.manifest.shards)} shards, all sound")

    return Action(do)


@values("folder", "split", "documents")
def inspect_folder(folder: str, split: str = "train", documents: str = "3") -> Action:
    """Show what a data folder holds, and its first documents as text.

    Args:
        folder: The data folder.
        split: train, val or test.
        documents: How many documents to show.
    """
    count = whole("documents", documents) or 0

    def do() -> None:
        print(summary(Path(folder)))
        for document in first_documents(Path(folder), split, count):
            print(document)

    return Action(do)


@values("source", "to", "out", "tokenizer")
def convert(source: str, to: str, out: str, tokenizer: str = "gpt2") -> Action:
    """Convert a data folder to another project's token files, or those to a data folder.

    Args:
        source: A data folder; a token file of Megatron, nanoGPT or llm.c; or a folder of such files.
        to: megatron (a data folder), nanogpt or llmc.
        out: The folder to make.
        tokenizer: Of files without a manifest: what made them.
    """
    if to not in FORMATS:
        raise DataError(f"--to {to}: no such format; take {', '.join(FORMATS)}")
    return Action(lambda: print(convert_files(Path(source), to, Path(out), tokenizer)))


COMMANDS: dict[str, Callable[..., Action]] = {
    "tokenize": tokenize,
    "verify": verify,
    "inspect": inspect_folder,
    "convert": convert,
    "reasoning": reasoning,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line. Exit codes: 0, 2 after one message about what to put right, 130 and 143 after signals."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background of a script
        signal.signal(signal.SIGINT, stop)
    try:
        with user_errors_exit():
            try:
                _action(list(sys.argv[1:] if argv is None else argv)).do()
            except Exception as error:
                if came:  # pydantic, for one, took the exception for its value's
                    raise KeyboardInterrupt from error
                raise
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr, flush=True)
        raise SystemExit(128 + (came[0] if came else signal.SIGINT)) from None


def _action(argv: list[str]) -> Action:
    flags = [word.partition("=")[0] for word in argv if word.startswith("--")]
    for flag in flags:
        if flags.count(flag) > 1:
            raise DataError(
                f"{flag}: given {flags.count(flag)} times; give it once, with a folder or a glob for several"
            )
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            action = fire.Fire(COMMANDS, command=argv or ["--help"], name="data_prep", serialize=lambda _: None)
    except FireExit as stop:
        if stop.code == 0:
            print(_help(said.getvalue()), end="")
            raise SystemExit(0) from None
        raise DataError(_in_words(stop.trace.elements[-1].ErrorAsStr(), argv)) from None
    if not isinstance(action, Action):
        raise DataError(f"{' '.join(argv)}: no such command; take {', '.join(COMMANDS)}")
    return action


def _help(text: str) -> str:
    """fire's help without what it says about itself."""
    _, _, text = text.partition("\n\n") if text.startswith("INFO") else ("", "", text)
    return re.sub(r"\nGROUPS\n.*?(?=\nNOTES)", "", text, flags=re.DOTALL).replace("GROUP | ", "")


def _in_words(problem: str, argv: list[str]) -> str:
    """fire's complaint as one of ours."""
    what = problem.rpartition(": ")[2].strip()
    command = argv[0] if argv and argv[0] in COMMANDS else None
    if command is None:
        return f"{what}: no such command; take {closest(what, list(COMMANDS))}"
    flags = [f"--{name}" for name in inspect.signature(COMMANDS[command]).parameters]
    if "required argument" in problem:
        return f"{command}: --{what} is missing; it needs one"
    if what.startswith("-"):
        return f"{what}: no such flag of {command}; take {closest(what.partition('=')[0], flags)}"
    return f"{what}: one argument too many for {command}; put names with spaces in quotes"
