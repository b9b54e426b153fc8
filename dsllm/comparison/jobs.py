"""Training runs as processes of the ordinary launcher, several side by side, that end with the study.

work/NAME.yaml    the configuration
work/NAME.log     what its process said
work/NAME/        the run
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from dsllm.comparison.record import Diverged, arm_of
from dsllm.config import RunConfig
from dsllm.data.files import os_errors_named
from dsllm.errors import UserError
from dsllm.training.lock import take
from dsllm.training.monitor import read_metrics
from dsllm.training.run_folder import differences
from dsllm.training.world import free_port

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
W = TypeVar("W")


class Jobs:
    """Starts runs in `work`, of `ranks` processes each; `at_once` of them share the cores."""

    def __init__(self, work: Path, ranks: int, at_once: int):
        self.work, self.ranks, self.at_once = work, ranks, at_once
        self._held: object = None
        """The lock of `work`, from the first run to the process's end."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def side_by_side(self, make: Callable[[W], T], runs: Sequence[W]) -> list[T]:
        """What `make` gives of each; after an error, or Ctrl-C, nothing is begun any more and what runs is ended."""
        with ThreadPoolExecutor(self.at_once) as pool:
            waiting = [pool.submit(make, run) for run in runs]
            try:
                done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
                for error in filter(None, (of.exception() for of in waiting if of in done)):  # in their order
                    raise error
            except BaseException:
                for of in waiting:
                    of.cancel()
                self.stop()
                raise
        return [of.result() for of in waiting]

    def stop(self) -> None:
        """End what runs, and return when it has; the runs keep what they have, and resume.

        A launcher that is told to end does so at once, and leaves its ranks behind: so they are told, and waited for.
        """
        with self._lock:
            self._ended = True
            ranks = [rank for process in self._running for rank in _children(process.pid)]
            for process in self._running:
                process.terminate()
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.terminate()
            psutil.wait_procs(ranks)

    def train(self, name: str, config: RunConfig) -> None:
        """Train, or go on, until the run is finished.

        Raises:
            Diverged: its loss had become no number when it ended.
            UserError: another study is at work in `work`, the folder holds another run, or training ended with an
                error; with the end of its log.
        """
        with self._lock:
            self._held = self._held or take(self.work / ".lock")
        file, log = self.work / f"{name}.yaml", self.work / f"{name}.log"
        _check_same(config)
        with os_errors_named(self.work):
            file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
            output = log.open("a")
        with output:
            with self._lock:
                if self._ended:
                    raise UserError("the study was stopped; the same command goes on")
                process = subprocess.Popen(
                    [*self._launcher(), str(ROOT / "launch" / "train.py"), "--config", str(file)],
                    env=self._environment(),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code:
            trained = [record for record in read_metrics(config.run_dir) if record["kind"] == "train"]
            if trained and trained[-1]["loss"] is None:
                raise Diverged(f"{name}: its loss is no number, the run has diverged; see {log}")
            last = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise UserError(f"{name}: training ended with exit code {code}, see {log}:\n{last}")

    def _launcher(self) -> list[str]:
        if self.ranks == 1:
            return [sys.executable]
        deepspeed = str(Path(sys.executable).with_name("deepspeed"))
        return [deepspeed, "--master_port", str(free_port()), "--num_gpus", str(self.ranks)]

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        threads = max(1, (os.cpu_count() or 1) // (self.at_once * self.ranks))
        shared = {"OMP_NUM_THREADS": str(threads)} if self.at_once > 1 else {}
        return {**shared, **os.environ, "PATH": path}


def apart(then: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, how a configuration differs from the one that is asked for; empty if it does not."""
    # Filled in when a run begins, by its data.
    now = {**now, "model": {**now["model"], "vocab_size": then["model"]["vocab_size"]}}
    return "; ".join(differences({key: then.get(key) for key in now}, now, ""))


def _check_same(config: RunConfig) -> None:
    """Raises `UserError` if the run's folder holds one of another configuration."""
    there = config.run_dir / "config.yaml"
    if not there.exists():
        return
    differing = apart(arm_of(RunConfig.from_file(there), ""), arm_of(config, ""))
    if differing:
        raise UserError(f"{config.run_dir}: of another study ({differing}); take another --work, or remove it")


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
