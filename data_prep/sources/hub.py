"""A data set of the Hugging Face hub, streamed: nothing is downloaded but what is read.

`datasets` can say where a stream stands (`state_dict`) and go on from there, so a position is exact. The name of a
branch is resolved to a commit before the first document, and a run that goes on reads the same commit.
"""

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import JsonValue

from data_prep.sources.base import Document, MissingField, joined
from dsllm.errors import DataError

TIMEOUT_SECONDS = 20


class DatasetSource:
    """A streamed data set.

    Args:
        name: for messages.
        fields: columns that make up the text.
        load: opens the stream, a `datasets.IterableDataset`.
        identity: what tells this content from another, such as the commit.
    """

    def __init__(
        self, name: str, fields: tuple[str, ...], load: Callable[[], Any], identity: dict[str, JsonValue]
    ) -> None:
        self._name, self._fields, self._load = name, fields, load
        self._identity = identity
        self._stream: Any = None
        self._row = 0

    @property
    def identity(self) -> dict[str, JsonValue]:
        return self._identity

    @property
    def position(self) -> JsonValue:
        return {"row": self._row, "stream": self._stream.state_dict()}

    def documents(self, position: JsonValue) -> Iterator[Document]:
        try:
            self._stream, self._row = self._load(), 0
            if isinstance(position, dict):
                self._row = int(str(position["row"]))
                self._stream.load_state_dict(position["stream"])
            rows = iter(self._stream)
        except DataError:
            raise
        except Exception as error:  # the hub's clients raise what their transports raise
            raise DataError(f"{self._name}: cannot be opened ({_reason(error)}); check the name and --subset") from None
        while True:
            try:
                record = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise DataError(
                    f"{self._name}: reading stopped at row {self._row + 1} ({_reason(error)}); "
                    "check the connection and repeat the command"
                ) from None
            self._row += 1
            where = f"{self._name}: row {self._row}"
            try:
                document = joined(record, self._fields, where)
            except MissingField as error:
                raise DataError(str(error)) from None
            yield document


def hub_dataset(
    name: str,
    fields: tuple[str, ...],
    *,
    revision: str | None,
    subset: str | None,
    split: str,
    recorded: dict[str, JsonValue] | None,
) -> DatasetSource:
    """A data set by its name on the hub.

    Args:
        name: `org/name`.
        fields: columns that make up the text.
        revision: branch, tag or commit.
        subset: which of several configurations.
        split: the hub's split, usually train.
        recorded: the identity of the run that this one continues; it pins the commit and saves asking the hub.

    Raises:
        DataError: the hub cannot be reached, or has no such data set or revision.
    """
    commit = (recorded or {}).get("commit") or _commit(name, revision)

    def load() -> Any:
        # Imported where it is needed: `datasets` takes longer to load than a small corpus takes to prepare.
        import datasets

        return datasets.load_dataset(name, subset, split=split, revision=str(commit), streaming=True)

    return DatasetSource(name, fields, load, {"commit": commit})


def _commit(name: str, revision: str | None) -> JsonValue:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT_SECONDS).sha
    except RevisionNotFoundError:
        raise DataError(f"{name}: no revision {revision!r} on the hub; leave --revision out for the newest") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise DataError(
            f"{name}: no such file or folder here, and no such data set on the hub, or it is private; "
            "check the name, or log in with `hf auth login`"
        ) from None
    except Exception as error:  # the hub's clients raise what their transports raise
        raise DataError(
            f"{name}: no such file or folder here, and the Hugging Face hub cannot be reached ({_reason(error)}); "
            "check the connection, or give local files: .jsonl, .parquet, text"
        ) from None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
