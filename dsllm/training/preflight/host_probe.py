"""What a host is, as one line of JSON. Preflight sends this file there, and runs it as `python - REQUEST`.

    {"run_dir": "/shared/runs/big", "token": "/shared/.preflight-5f0c", "data": ["data/papers"],
     "packages": ["torch", …], "master_addr": "10.77.0.1", "master_port": 29500, "seconds": 20}
    → {"python": "3.11.7", "versions": {"torch": "2.13.0", …}, "code": "9c1d…", "gpus": 8, …}      see facts.py

It stands on the standard library alone, because a host may lack everything else, and says so then.
"""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from glob import escape, glob
from importlib import metadata
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> None:
    signal.alarm(int(request["seconds"]) + 5)  # by then nobody waits any more
    package = package_folder()
    answer = {
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in request["packages"]},
        "code": package and code_checksum(package)[:12],
        "commit": package and commit(package),
        "gpus": gpus(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory(),
        "shm": shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        "storage": storage(request["run_dir"], request["token"]),
        "data": {path: data(path) for path in request["data"]},
        "interface": interface(request["master_addr"]),
        "master_port_free": free_port(request["master_port"]) is not None,
        "spare_port": free_port(0),
        "clock": time.time(),
    }
    print(json.dumps(answer))


def machine() -> str:
    """The same for two names of one machine; the kernel's boot alone is shared by containers, which are hosts."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{socket.gethostname()} {file.read().strip()}"


def version(name: str) -> "str | None":
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def package_folder() -> "str | None":
    """Of the `dsllm` that training would import here; the working directory comes first, as under the launcher."""
    spec = importlib.util.find_spec("dsllm")
    return None if spec is None or spec.origin is None else os.path.dirname(spec.origin)


def code_checksum(package: str) -> str:
    """Of all source files and their names, as in dsllm.training.agreement, by which the ranks compare it once more."""
    files = sorted(Path(package).rglob("*.py"))
    lines = (f"{file.relative_to(package)} {sha256(file.read_bytes())}\n" for file in files)
    return sha256("".join(lines).encode())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def commit(package: str) -> "str | None":
    return printed("git", "-C", package, "rev-parse", "--short", "HEAD") or None


def gpus() -> "int | None":
    """None: there is a driver, and it fails or does not answer."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = printed("nvidia-smi", "-L")
    return None if listed is None else sum(line.startswith("GPU ") for line in listed.splitlines())


def printed(*command: str) -> "str | None":
    """What a command prints, or None if it fails or takes long."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=8)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def memory() -> "int | None":
    """Bytes that processes could have."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def storage(run_dir: str, token: "str | None") -> "dict[str, Any]":
    """Where `run_dir` is or would be made, and whether a file that another host made is seen here."""
    folder = run_dir
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return {
        "folder": folder,
        "free": shutil.disk_usage(folder).free,
        "writable": os.access(folder, os.W_OK | os.X_OK),
        "shared": token is not None and os.path.exists(token),
    }


def data(path: str) -> "dict[str, Any] | None":
    """Hashes of a data folder's manifest, and of the names and sizes of its token files; None if nothing is there."""
    is_folder = os.path.isdir(path)
    files = sorted(glob(os.path.join(escape(path), "*.bin") if is_folder else escape(path) + "*"))
    if not is_folder and not files:
        return None
    sizes = "".join(f"{os.path.relpath(file, path)} {os.path.getsize(file)}\n" for file in files)
    manifest = Path(path) / "manifest.json"
    content = sha256(manifest.read_bytes())[:12] if manifest.is_file() else None
    return {"manifest": content, "files": sha256(sizes.encode())[:12]}


def interface(master_addr: "str | None") -> "str | None":
    """The interface that leads to the master, by the rule of dsllm.training.network; None if none does."""
    try:
        import psutil  # not of the standard library; that it is missing is said by `versions`

        for family, kind, protocol, _, target in socket.getaddrinfo(master_addr, 1, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)  # of a datagram socket: it asks the routing table and sends nothing
                source = probe.getsockname()[0]
            for name, addresses in psutil.net_if_addrs().items():
                if any(address.address == source for address in addresses):
                    return str(name)
    except (ImportError, OSError):
        pass
    return None


def free_port(port: int) -> "int | None":
    """`port` if nobody listens on it, any free one for 0; None if somebody does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's rendezvous does
        try:
            probe.bind(("", port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
