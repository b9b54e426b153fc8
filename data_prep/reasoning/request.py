"""What the user asked for: a task, chain lengths, and how many problems of each."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import JsonValue

from data_prep.reasoning.task import Task
from dsllm.data.manifest import Manifest
from dsllm.errors import DataError
from dsllm.tokenizer import Tokenizer


@dataclass(frozen=True)
class ProblemRequest:
    """What the user asked for; equal requests give equal bytes."""

    task: Task
    lengths: range
    """Chain lengths to train on."""
    beyond: range
    """Longer ones, maybe none."""
    documents: int
    """Problems to train on, as many of each length."""
    held_out: int
    """Problems of each length in val, test and beyond."""
    seed: int = 0
    vocabulary: str = "small"

    def check(self) -> None:
        """Raises `DataError` with the first thing that is wrong."""
        for flag, lengths in (("lengths", self.lengths), ("beyond", self.beyond)):
            if len(lengths) and lengths[-1] > self.task.longest:
                raise DataError(
                    f"--{flag} {lengths[0]}-{lengths[-1]}: the longest chain of {self.task.name} with these options "
                    f"is {self.task.longest}; take shorter ones, or options that allow more"
                )
        if len(self.beyond) and self.beyond[0] <= self.lengths[-1]:
            raise DataError(
                f"--beyond {self.beyond[0]}-{self.beyond[-1]}: must begin after {self.lengths[-1]}, where --lengths "
                f"{self.lengths[0]}-{self.lengths[-1]} ends"
            )
        for flag, number in (("documents", self.documents), ("held_out", self.held_out)):
            if number < 1:
                raise DataError(f"--{flag} {number}: must be at least 1")
        if self.seed < 0:
            raise DataError(f"--seed {self.seed}: must be 0 or more")
        if self.vocabulary not in ("small", "bytes"):
            raise DataError(f"--vocabulary {self.vocabulary}: no such vocabulary; take small or bytes")
        if self.vocabulary == "bytes" and not self.task.written:
            raise DataError(f"--vocabulary bytes: the words of {self.task.name} are no characters; take small")

    def wanted(self) -> Iterator[tuple[str, int, int]]:
        """Split, chain length and how many problems, in the order in which they are written."""
        for number, length in enumerate(self.lengths):
            # What does not come out even goes to the first lengths.
            yield "train", length, (self.documents - number - 1) // len(self.lengths) + 1
        for split in ("val", "test"):
            yield from ((split, length, self.held_out) for length in self.lengths)
        yield from (("beyond", length, self.held_out) for length in self.beyond)

    def manifest(self, tokenizer: Tokenizer) -> Manifest:
        """Of a folder that has just begun."""
        longest = max(*self.lengths, *self.beyond, 1)
        source: dict[str, JsonValue] = {
            "source": f"reasoning:{self.task.name}",
            **self.task.model_dump(mode="json"),
            "lengths": [self.lengths[0], self.lengths[-1]],
            "beyond": [self.beyond[0], self.beyond[-1]] if len(self.beyond) else None,
            "documents": self.documents,
            "held_out": self.held_out,
            "seed": self.seed,
            "vocabulary": self.vocabulary,
            "chance": {str(length): self.task.chance(length) for length in range(1, longest + 1)},
        }
        rule: dict[str, JsonValue] = {"hash": "of the tokens", "train": 14 / 16, "val": 1 / 16, "test": 1 / 16}
        return Manifest(complete=False, tokenizer=tokenizer.info, source=source, split_rule=rule, shards=[])
