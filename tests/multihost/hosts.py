"""Hosts on one machine: what `deepspeed --hostfile` needs to see of a cluster, made of Linux namespaces.

    switch   network namespace with the bridge br0
       ├─ port1 ── eth0  node1  10.77.0.1   own network, processes, mounts, name, /root, /run, /dev/shm; an sshd
       └─ port2 ── eth0  node2  10.77.0.2   the same; files are shared, as on a cluster with shared storage

    with hosts(2, tmp_path) as cluster:
        cluster.run(["hostname"], on="node2").stdout          # "node2\n"
        cluster.deepspeed(["launch/train.py", "--config", …])  # from node1, by pdsh and ssh, over both

Each namespace lives as long as its first process, and that one ends when the pipe from the test closes: also when the
test is killed, nothing remains. No interface, address, mount or key appears outside, so runs side by side cannot meet.

Like a fresh Debian host, each maps its own name to 127.0.1.1; a program that looks itself up finds the wrong interface.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
VENV_PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMANDS = ("unshare", "nsenter", "ip", "pkill", "ssh", "ssh-keygen", "pdsh", "/usr/sbin/sshd")

Result = subprocess.CompletedProcess[str]


def missing_requirement() -> str | None:
    """Why hosts cannot be made on this machine, or None where they can."""
    if os.geteuid() != 0:
        return "making hosts needs root"
    if absent := [name for name in COMMANDS if shutil.which(name) is None]:
        return f"making hosts needs {', '.join(absent)} (packages iproute2, procps, openssh-server, pdsh)"
    trial = "mount -t tmpfs tmpfs /run && ip link add br0 type bridge && ip link add port1 type veth peer name eth0"
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--uts", "--ipc", "sh", "-c", trial],
        capture_output=True,
        text=True,
    )
    return None if done.returncode == 0 else f"making hosts needs namespaces: {done.stderr.strip()}"


class Namespace:
    """Namespaces of their own around a first process; with it, every process in them ends.

    Args:
        kinds: options of `unshare`, such as `--net`.
        setup: shell commands that the first process runs before it waits.
    """

    def __init__(self, kinds: Sequence[str], setup: str = "") -> None:
        # bash reaps orphans, as an init must; `read` returns when the test closes its end of the pipe or is no more.
        script = f"set -e\n{setup}\necho up\nread -r || true"
        self._unshare = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *kinds, "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != "up\n":
            self.end()
            raise RuntimeError(f"the namespace was not made; its setup was:\n{setup}")
        self.pid = psutil.Process(self._unshare.pid).children()[0].pid

    def enter(self, *kinds: str) -> list[str]:
        """The beginning of a command line that runs the rest inside; all namespaces unless `kinds` names some."""
        return ["nsenter", f"--target={self.pid}", *(kinds or ("--net", "--pid", "--mount", "--uts", "--ipc"))]

    def network(self, arguments: str) -> None:
        """Runs `ip ARGUMENTS` inside."""
        subprocess.run([*self.enter("--net"), "ip", *arguments.split()], check=True)

    def processes(self) -> list[psutil.Process]:
        """Every process inside."""
        inside = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        found = []
        for process in psutil.process_iter():
            try:
                if os.stat(f"/proc/{process.pid}/ns/pid").st_ino == inside:
                    found.append(process)
            except OSError:  # ended meanwhile, or a zombie
                continue
        return found

    @property
    def ended(self) -> bool:
        """Whether its first process is gone, and with it all others."""
        return self._unshare.poll() is not None

    def end(self) -> None:
        """Ends every process inside, and returns when they are gone."""
        assert self._unshare.stdin is not None and self._unshare.stdout is not None
        self._unshare.stdin.close()
        self._unshare.stdout.close()
        self._unshare.wait()  # the kernel kills the whole process namespace before its first process counts as ended


class Host(Namespace):
    """One host: a name, an address, a home folder, and an sshd that lets the other hosts in."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.home, self.disk = name, address, folder / name / "home", folder / name / "disk"
        for path in (self.home, self.disk):
            path.mkdir(parents=True)
        etc = {
            "hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n",
            # ssh, sshd and pdsh look up root's home here, not in $HOME; so the machine's own ~/.ssh stays out of it.
            "passwd": f"root:x:0:0:root:{self.home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n",
            "shadow": "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n",
        }
        setup = [f"hostname {name}", "mount -t tmpfs tmpfs /run", "mount -t tmpfs tmpfs /dev/shm", "mkdir /run/sshd"]
        for file, text in etc.items():
            (folder / name / file).write_text(text)
            setup.append(f"mount --bind {shlex.quote(str(folder / name / file))} /etc/{file}")
        setup.append(f"mount --bind {shlex.quote(str(self.disk))} {shlex.quote(str(folder / 'disk'))}")
        super().__init__(["--net", "--mount", "--uts", "--ipc"], "\n".join(setup))

    def start_sshd(self, key: Path) -> None:
        """Starts sshd, and gives ssh the key and the other hosts' addresses by `~/.ssh/config`."""
        config = self.home.parent / "sshd_config"
        config.write_text(
            f"ListenAddress {self.address}\nHostKey {key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\n"
            "UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\nPidFile none\n"
        )
        log = self.home.parent / "sshd.log"
        # It leaves for the background once it listens.
        subprocess.run([*self.enter(), "/usr/sbin/sshd", "-f", config, "-E", log], check=True, timeout=30)


def name_of(process: psutil.Process) -> str | None:
    """A process's name; None if it has just ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


class Cluster:
    """Hosts node1, node2 … on one switch; see `hosts`."""

    def __init__(self, n: int, folder: Path, cleanup: ExitStack) -> None:
        self.folder = folder
        self.disk = folder / "disk"  # the same path on every host, but each host's own content
        self.disk.mkdir(parents=True)
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        self._switch = Namespace(["--net", "--mount"], "ip link add br0 type bridge\nip link set br0 up")
        cleanup.callback(self._switch.end)
        self.hosts: dict[str, Host] = {}
        for number in range(1, n + 1):
            host = Host(f"node{number}", f"10.77.0.{number}", folder)
            cleanup.callback(host.end)
            self.hosts[host.name] = host
            self._plug_in(host)
        self.hostfile = folder / "hosts"
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in self.hosts))
        for host in self.hosts.values():
            self._write_home(host, key)
            host.start_sshd(key)
        self._resident = {process.pid for host in self.hosts.values() for process in host.processes()}

    def _plug_in(self, host: Host) -> None:
        port = self._port(host.name)
        self._switch.network(f"link add {port} type veth peer name eth0 netns {host.pid}")
        self._switch.network(f"link set {port} master br0 up")
        host.network("link set lo up")
        host.network(f"address add {host.address}/24 dev eth0")
        host.network("link set eth0 up")

    def _write_home(self, host: Host, key: Path) -> None:
        ssh = host.home / ".ssh"
        ssh.mkdir()
        names = "".join(f"Host {other.name}\n  HostName {other.address}\n" for other in self.hosts.values())
        common = f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"
        # As docs/failures.md asks for: else pdsh waits for ever for a host that has died.
        alive = "  ServerAliveInterval 3\n  ServerAliveCountMax 3\n"
        (ssh / "config").write_text(names + common + alive + "  UserKnownHostsFile /dev/null\n")
        # Two processes share the cores; and sums in fp32 are the same only under the same number of threads.
        (host.home / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")

    @staticmethod
    def _port(name: str) -> str:
        return name.replace("node", "port")

    def start(
        self,
        command: Sequence[str | Path],
        on: str = "node1",
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
    ) -> subprocess.Popen[str]:
        """Starts a command on a host, with the virtual environment on PATH and nothing inherited but `env`.

        Its standard output and error come together as text in `stdout`.
        """
        host = self.hosts[on]
        environ = {"PATH": VENV_PATH, "HOME": str(host.home), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        line = [*host.enter(), "env", f"--chdir={cwd}", *map(str, command)]
        return subprocess.Popen(
            line,
            env={**environ, "DS_ACCELERATOR": "cpu", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self,
        command: Sequence[str | Path],
        on: str = "node1",
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
        timeout: float = 120,
    ) -> Result:
        """Runs a command on a host to its end, as `start` does; fails the test after `timeout` seconds."""
        process = self.start(command, on, env, cwd)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.end_jobs()
            output, _ = process.communicate()
            pytest.fail(f"{shlex.join(map(str, command))} took more than {timeout} s on {on}:\n{output}")
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def deepspeed(self, arguments: Sequence[str | Path], hostfile: Path | None = None, timeout: float = 120) -> Result:
        """Runs `deepspeed --hostfile … ARGUMENTS` on node1: one process on each host of the hostfile."""
        options: list[str | Path] = ["--hostfile", hostfile or self.hostfile]
        options += ["--master_addr", self.hosts["node1"].address]
        return self.run(["deepspeed", *options, *arguments], timeout=timeout)

    def end_jobs(self) -> None:
        """Kills what was started on the hosts."""
        for process in self.jobs():
            os.kill(process.pid, signal.SIGKILL)

    def cut(self, name: str) -> None:
        """Pulls a host's cable out of the switch."""
        self._switch.network(f"link set {self._port(name)} down")

    def mend(self, name: str) -> None:
        """Puts the cable back."""
        self._switch.network(f"link set {self._port(name)} up")

    def jobs(self) -> list[psutil.Process]:
        """What was started on the hosts and still runs, but for ssh's own ends of connections."""
        found = (process for host in self.hosts.values() if not host.ended for process in host.processes())
        return [
            process for process in found if process.pid not in self._resident and name_of(process) not in ("sshd", None)
        ]

    def kill(self, name: str) -> None:
        """Takes the power from a host: no farewell on its connections, and every process gone."""
        self.cut(name)
        self.hosts[name].end()


@contextmanager
def hosts(n: int, folder: Path) -> Iterator[Cluster]:
    """`n` hosts until the block ends; `folder` receives their homes, keys and logs. See `missing_requirement`."""
    with ExitStack() as cleanup:
        yield Cluster(n, folder, cleanup)
