"""The files that are open at a time: one pair for each split, all finished together.

    set 0    train_00000  val_00000  test_00000
    set 1    train_00001             test_00001      no document of set 1 fell to val

Finished together, there is after each set one position of the source at which nothing is half-written.
"""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from data_prep.encoding import EncodedBatch
from data_prep.splits import NAMES
from dsllm.data.indexed import IndexedWriter
from dsllm.data.manifest import ShardInfo


class ShardSet:
    """The pairs number `index` of all splits. Leaving the `with` block without `finish` removes what was written."""

    def __init__(self, folder: Path, index: int, dtype: np.dtype) -> None:
        self._folder, self._index, self._dtype = folder, index, dtype
        self._writers: dict[str, IndexedWriter] = {}
        self._text_bytes: dict[str, int] = {}
        self._open = ExitStack()

    def add(self, batch: EncodedBatch) -> None:
        """Appends a group's documents to the pairs of their splits.

        Raises:
            DataError: the disk is full or the folder cannot be written to.
        """
        for split, part in batch.by_split.items():
            if split not in self._writers:
                prefix = self._folder / f"{split}_{self._index:05d}"
                self._writers[split] = self._open.enter_context(IndexedWriter(prefix, self._dtype))
                self._text_bytes[split] = 0
            self._writers[split].add_many(part.tokens, part.sizes)
            self._text_bytes[split] += part.text_bytes

    @property
    def tokens(self) -> int:
        """Tokens of all splits."""
        return sum(writer.tokens for writer in self._writers.values())

    def finish(self) -> list[ShardInfo]:
        """Gives the pairs their names; those of splits that no document fell to do not exist."""
        shards = []
        for split in NAMES:
            if split in self._writers:
                writer = self._writers[split]
                written = writer.finish()
                shards.append(
                    ShardInfo(
                        split=split,
                        name=writer.prefix.name,
                        tokens=written.tokens,
                        documents=written.documents,
                        text_bytes=self._text_bytes[split],
                        bin_sha256=written.bin_sha256,
                        idx_sha256=written.idx_sha256,
                    )
                )
        return shards

    def __enter__(self) -> "ShardSet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
