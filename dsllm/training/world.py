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
from dsllm.training.heartbeat import Heartbeat
from dsllm.training.meeting import meet
from dsllm.training.network import export_interface

T = TypeVar("T")


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
def joined(
    run: str = "",
    lost_after: float = 30.0,
    meet_within: float = 60.0,
    timeout: timedelta = timedelta(minutes=10),
) -> Iterator[World]:
    """Join the ranks of this run: the environment is completed, the process group made and, at the end, destroyed.

    From the ranks' meeting on this process ends, with exit code 75, as soon as another is lost (`Heartbeat`).

    Args:
        run: What tells its ranks from those of another run that meet at the same port.
        lost_after: Seconds without a sign of life from another rank, after which it counts as lost.
        meet_within: Seconds within which all ranks have to come; `RankError` if one does not.
        timeout: How long a collective operation may take.
    """
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ.update(alone, MASTER_PORT=str(free_port()))
    export_interface(os.environ)
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    torch.set_num_threads(threads_per_process(int(os.environ.get("LOCAL_SIZE", "1"))))
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    store = dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False) if rank == 0 else None
    party = meet(run, rank, size, (host, port), meet_within, word=store.port if store else None)
    heartbeat = Heartbeat(party, lost_after)
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _make_groups(store or dist.TCPStore(host, party.word, size), rank, size, device, timeout)
    control = dist.new_group(backend="gloo", timeout=timeout)
    try:
        with heartbeat:
            yield World(rank, size, local_rank, device, control)
    except (UserError, Stopped, Reinitialise, KeyboardInterrupt):
        dist.destroy_process_group()
        raise
    # Not after any other error: with a rank lost, destroying the group would wait for it.
    dist.destroy_process_group()


def _make_groups(store: dist.Store, rank: int, size: int, device: torch.device, timeout: timedelta) -> None:
    """The process group of all ranks, by a store of our own, and DeepSpeed's view of it."""
    deepspeed = import_deepspeed()
    backend = deepspeed.get_accelerator().communication_backend_name()
    # One process has no peer; a device bound there makes every later group a split of NCCL's communicator.
    bound = device if device.type == "cuda" and size > 1 else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout, device_id=bound)
    deepspeed.init_distributed(verbose=False, timeout=timeout)


@contextmanager
def one_voice() -> Iterator[None]:
    """Within it a `UserError` ends the process with its exit code, and one rank of each host says why.

    All ranks mostly meet the same error. The first of a host speaks; the others wait to be ended by the launcher, and
    speak only when it does not come, for then the error is theirs alone.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(8)
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


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
