"""Reading ahead: the next item is made in a thread of its own while the one before is used."""

from collections.abc import Generator, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def one_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The items in their order, one being made while the last is used; what making one raises comes in its place.

    Closed early, nothing more is asked of `items`. The thread does not keep the process: a read that hangs on a network
    must not hold up Ctrl-C, as the threads of a pool would.
    """
    asked: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    Thread(target=_make, args=(iter(items), asked, made), name="read", daemon=True).start()
    try:
        asked.put(True)
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            asked.put(True)
            yield item  # type: ignore[misc]  # None would have come with an error
    finally:
        asked.put(False)


def _make(
    items: Iterator[T], asked: SimpleQueue[bool], made: SimpleQueue[tuple[T | None, BaseException | None]]
) -> None:
    while asked.get():
        try:
            made.put((next(items), None))
        except BaseException as error:
            made.put((None, error))
            return
