"""Vectors of texts by a run's model: written down, compared, or searched for the nearest.

python launch/embed.py RUN_OR_CHECKPOINT --text "A group is abelian if …" --text "…" --out x.npy
python launch/embed.py RUN_OR_CHECKPOINT --file lines.txt --out x.npy [--level 1] [--pool mean|last]
python launch/embed.py RUN_OR_CHECKPOINT --compare "A group is abelian if …" "In a commutative group …"
python launch/embed.py RUN_OR_CHECKPOINT --nearest "commutative groups" --file lines.txt [--k 5]
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsllm.command_line import CommandLine, named_path, positive
from dsllm.data.files import os_errors_named, temporary, write_atomically
from dsllm.embedding import Embedder
from dsllm.errors import ConfigError, UserError, user_errors_exit
from dsllm.machine import default_device
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.loading import load_model, load_tokenizer_of


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    texts = parser.add_argument_group("texts")
    texts.add_argument("--text", action="append", metavar="TEXT", help="a text; may be given again")
    texts.add_argument("--file", type=Path, metavar="FILE", help="texts in UTF-8, one a line")
    wish = parser.add_argument_group("what becomes of them, one of")
    wish.add_argument(
        "--out", type=named_path, metavar="FILE", help="write their vectors: (texts, width) float32, for np.load"
    )
    wish.add_argument("--compare", nargs=2, metavar="TEXT", help="print the cosine of the angle between two texts")
    wish.add_argument("--nearest", metavar="TEXT", help="print the lines of --file nearest to this text, with cosines")
    parser.add_argument("--k", type=positive, help="how many lines --nearest prints (5)")
    parser.add_argument("--level", type=int, default=-1, help="of the model, from 0; -1, the innermost, by default")
    parser.add_argument("--pool", default="mean", choices=["mean", "last"], help="of a level's vectors (mean)")
    arguments = parser.parse_args()
    with user_errors_exit("stopped"):
        check(arguments)
        lines = arguments.text or [] if arguments.file is None else read_lines(arguments.file)
        checkpoint = find_checkpoint(arguments.run)
        tokenizer = load_tokenizer_of(checkpoint)
        device = default_device()
        embedder = Embedder(load_model(checkpoint.path).to(device), tokenizer, arguments.level, arguments.pool)
        if arguments.compare is not None:
            a, b = embed(embedder, arguments.compare)
            print(f"{a @ b:.4f}")
        elif arguments.nearest is not None:
            vectors = embed(embedder, [arguments.nearest, *lines])
            cosines = vectors[1:] @ vectors[0]
            for line in np.argsort(-cosines, kind="stable")[: arguments.k or 5]:
                print(f"{cosines[line]:.4f}  {line + 1}: {lines[line]}")
        else:
            vectors = embed(embedder, lines)
            content = io.BytesIO()
            np.save(content, vectors)
            write_atomically(arguments.out, content.getvalue())
            print(f"{arguments.out}: {vectors.shape[0]:,} × {vectors.shape[1]:,} float32, level {embedder.level}")


def check(arguments: argparse.Namespace) -> None:
    """One wish, with the texts that it needs. Raises `UserError` for anything else, or if --out cannot be written."""
    wishes = [name for name in ("out", "compare", "nearest") if getattr(arguments, name) is not None]
    if not wishes:
        raise ConfigError("nothing to do; give --out FILE, --compare TEXT TEXT or --nearest TEXT")
    if len(wishes) > 1:
        raise ConfigError(f"--{wishes[0]} and --{wishes[1]}: one at a time; leave out one of the two")
    (wish,) = wishes
    given = [name for name in ("text", "file") if getattr(arguments, name) is not None]
    takes = {"out": ("text", "file"), "compare": (), "nearest": ("file",)}[wish]
    for name in given:
        if name not in takes:
            raise ConfigError(
                f"--{name}: not used by --{wish}; leave it out" + " and give --file" * (wish == "nearest")
            )
    if takes and not given:
        raise ConfigError(f"--{wish}: no texts; give {' or '.join(f'--{name}' for name in takes)}")
    if len(given) > 1:
        raise ConfigError("--text and --file: give the texts in one of the two ways")
    if arguments.k is not None and wish != "nearest":
        raise ConfigError(f"--k = {arguments.k}: only --nearest prints so many lines; leave it out")
    if wish == "nearest" and not arguments.nearest.strip():
        raise UserError("--nearest: empty; give some words to look for")
    if wish == "out":
        with os_errors_named(arguments.out):  # before the work, not after it
            if arguments.out.is_dir():
                raise UserError(f"{arguments.out}: a folder; name a file, as in {arguments.out / 'x.npy'}")
            if arguments.out.exists() and not arguments.out.is_file():
                raise UserError(f"{arguments.out}: a device or a pipe, which would be replaced; name a file")
            draft = temporary(arguments.out)
            draft.touch()
            draft.unlink()


def read_lines(path: Path) -> list[str]:
    """The lines of a file. Raises `UserError` if it cannot be read, has none, or has an empty one."""
    with os_errors_named(path):
        content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        bad = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {bad}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    if lines == [""]:
        raise UserError(f"{path}: holds no text; write one a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"{path}, line {number}: empty; a line is a text, so take it out")
    return lines


def embed(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """The texts' vectors, and on standard error a word on those that were cut for it."""
    documents = embedder.encode(texts)
    cut = [len(tokens) for tokens in documents if len(tokens) > embedder.most_tokens]
    if cut:
        many = f"{len(cut):,} of {len(texts):,} texts are" if len(texts) > 1 else "the text is"
        print(
            f"{many} longer than the {embedder.most_tokens:,} tokens that level {embedder.level} takes at once, up to "
            f"{max(cut):,}: embedded in chunks, averaged by their length",
            file=sys.stderr,
        )
    short = sum(len(tokens) < embedder.span for tokens in documents)
    if short:
        print(
            f"{short:,} of {len(texts):,} texts are shorter than the {embedder.span:,} tokens that a vector of level "
            f"{embedder.level} stands for, so such vectors differ little; --level 0 tells short texts apart",
            file=sys.stderr,
        )
    return embedder.embed(documents)


if __name__ == "__main__":
    main()
