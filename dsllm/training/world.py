"""The ranks of a run: how they find each other, and how they agree.

    with joined() as world:            # rank, size, device; one process per accelerator, or per slot on CPUs
        dataset = world.together(open_dataset)      # an error on any rank is the same error on all, said once

Started by the `deepspeed` launcher the environment says who is who; started as a plain script it is a world of one.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dsllm.errors import Reinitialise, Stopped, UserError
from dsllm.training.backend import import_deepspeed
from dsllm.training.network import export_interface

T = TypeVar("T")

PORT_PATIENCE = 20.0
"""Seconds."""


@dataclass(frozen=True)
class World:
    """One rank's view of all ranks. Its methods are collective: every rank calls them, in the same order."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup
    """A gloo group for small agreements: they cost no synchronisation of the accelerator."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        dist.barrier(group=self.control)

    def maximum(self, value: int) -> int:
        """The largest of all ranks' values."""
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a tensor on the CPU."""
        values = values.clone()
        dist.all_reduce(values, group=self.control)
        return values

    def everyone(self, value: T) -> list[T]:
        """Each rank's value, in the order of ranks, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_main(self, action: Callable[[], T]) -> T:
        """What `action` gives on rank 0, on every rank; a `UserError` there is raised on every rank."""
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box = [action(), None]
            except UserError as error:
                box = [None, error]
        dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def together(self, action: Callable[[], T]) -> T:
        """`action()` on every rank; a `UserError` on any is raised on all, so that none is left waiting."""
        result, mine = None, None
        try:
            result = action()
        except UserError as error:
            mine = error
        errors: list[UserError | None] = [None] * self.size
        dist.all_gather_object(errors, mine, group=self.control)
        failed = {rank: error for rank, error in enumerate(errors) if error is not None}
        if not failed:
            return result  # type: ignore[return-value]
        rank, first = next(iter(failed.items()))
        raise first if len(failed) == self.size else type(first)(f"rank {rank}: {first}")


@contextmanager
def joined(timeout: timedelta = timedelta(minutes=10)) -> Iterator[World]:
    """Join the ranks of this run: the environment is completed, the process group made and, at the end, destroyed."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ.update(alone, MASTER_PORT=str(free_port()))
    export_interface(os.environ)
    local_rank = int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(threads_per_process(int(os.environ.get("LOCAL_SIZE", "1"))))

    _rendezvous(timeout)
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    control = dist.new_group(backend="gloo", timeout=timeout)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, device, control)
    except (UserError, Stopped, Reinitialise, KeyboardInterrupt):
        dist.destroy_process_group()
        raise
    # Not after any other error: with a rank lost, destroying the group would wait for it.
    dist.destroy_process_group()


def _rendezvous(timeout: timedelta) -> None:
    """Join the process group; try again for a while if the port is taken, for a run that restarts lets go of it."""
    deepspeed = import_deepspeed()
    deadline = time.monotonic() + PORT_PATIENCE
    while True:
        try:
            deepspeed.init_distributed(verbose=False, timeout=timeout)
            return
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error):
                raise
            if time.monotonic() > deadline:
                port = os.environ["MASTER_PORT"]
                raise UserError(
                    f"port {port} for the ranks' rendezvous is taken, maybe by another run on this host; "
                    f"start with another --master_port. A run that was under way goes on where it was"
                ) from None
        time.sleep(0.5)


@contextmanager
def one_voice() -> Iterator[None]:
    """Within it a `UserError` ends the process with exit code 2, and one rank of each host says why.

    All ranks mostly meet the same error. The first of a host speaks; the others wait to be ended by the launcher, and
    speak only when it does not come, for then the error is theirs alone.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(8)
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def threads_per_process(processes: int) -> int:
    """Threads for each of a host's processes: its share of the usable cores, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"].split(",")[0])  # OpenMP takes a list, one for each nested level
    return max(1, len(os.sched_getaffinity(0)) // processes)


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
