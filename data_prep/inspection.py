"""A data folder in words: what its manifest says, and the text of its first documents."""

from collections.abc import Iterator
from pathlib import Path

from dsllm.data.manifest import Manifest
from dsllm.data.shards import open_shard
from dsllm.errors import DataError
from dsllm.tokenizer import tokenizer_of

SHOWN_CHARACTERS = 400


def summary(folder: Path) -> str:
    """Source, tokenizer and counts.

    Raises:
        DataError: no readable manifest.
    """
    manifest = Manifest.read(folder)
    source = manifest.source
    lines = [
        f"{folder}: {'complete' if manifest.complete else 'unfinished; the same tokenize command goes on'}",
        f"source      {source.get('source', 'unknown')}",
        f"tokenizer   {manifest.tokenizer}",
    ]
    if isinstance(counts := source.get("counts"), dict):
        lines.append("read        " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    lines.append(f"{'split':8}{'shards':>8}{'documents':>14}{'tokens':>18}{'text bytes':>18}{'bytes/token':>13}")
    for split in manifest.splits:
        shards = [shard for shard in manifest.shards if shard.split == split]
        documents, tokens, text_bytes = (
            sum(getattr(shard, count) for shard in shards) for count in ("documents", "tokens", "text_bytes")
        )
        rate = text_bytes / tokens
        lines.append(f"{split:8}{len(shards):>8}{documents:>14,}{tokens:>18,}{text_bytes:>18,}{rate:>13.2f}")
    return "\n".join(lines)


def first_documents(folder: Path, split: str, count: int) -> Iterator[str]:
    """The beginning of the text of a split's first documents, decoded from its tokens.

    Raises:
        DataError: no such split, a broken shard, or a tokenizer that is not here.
    """
    if count < 1:
        raise DataError(f"--documents {count}: must be at least 1")
    shards = Manifest.read(folder).shards_of(split, folder)
    tokenizer = tokenizer_of(folder)
    left = count
    for shard in shards:
        pair = open_shard(folder, shard)
        for i in range(min(left, len(pair))):
            tokens = pair.document(i)
            # A token stands for a byte at least, most for several: enough tokens for what is shown.
            text = tokenizer.decode(tokens[: 4 * SHOWN_CHARACTERS].tolist())
            rest = " …" if len(text) > SHOWN_CHARACTERS else ""
            yield f"--- {shard.name}, document {i}: {len(tokens):,} tokens\n{text[:SHOWN_CHARACTERS]}{rest}"
        left -= min(left, len(pair))
        if not left:
            return
