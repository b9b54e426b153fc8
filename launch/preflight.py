"""Check the hosts of a hostfile before a launch: what DeepSpeed would find out late, or not at all.

python launch/preflight.py --hostfile hosts --run_dir /shared/runs/big --data data/papers

Prints a row for each host, then warnings; exits with code 2 and all problems if a launch would fail.
"""

import signal
from pathlib import Path

from dsllm.command_line import CommandLine, named_path, positive
from dsllm.errors import UserError, user_errors_exit
from dsllm.training.hostfile import read_hostfile
from dsllm.training.preflight.survey import MASTER_PORT, survey
from dsllm.training.preflight.table import table


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--hostfile", type=Path, required=True)
    parser.add_argument("--run_dir", type=named_path, metavar="DIR", help="must be on storage that all hosts share")
    parser.add_argument("--data", type=named_path, nargs="+", default=[], metavar="DIR", help="the same on all hosts")
    parser.add_argument(
        "--master_addr", help="as for deepspeed; by default the first of `hostname -I` on the first host"
    )
    parser.add_argument("--master_port", type=positive, default=MASTER_PORT, help=f"as for deepspeed ({MASTER_PORT})")
    parser.add_argument("--mb", type=positive, default=64, help="megabytes sent from each host to the first (64)")
    arguments = parser.parse_args()
    with user_errors_exit():
        slots = read_hostfile(arguments.hostfile)
        if arguments.run_dir is not None and arguments.run_dir.exists() and not arguments.run_dir.is_dir():
            raise UserError(f"--run_dir {arguments.run_dir}: a file; name a folder")
        if arguments.master_port > 65535:
            raise UserError(f"--master_port {arguments.master_port}: take a port up to 65535")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            found = survey(
                slots,
                arguments.run_dir,
                arguments.data,
                arguments.master_addr,
                arguments.master_port,
                arguments.mb,
            )
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        print(table(found.hosts))
        for warning in found.warnings:
            print(f"warning: {warning}", flush=True)
        if found.problems:
            count = f"{len(found.problems)} problem{'s' * (len(found.problems) > 1)}"
            raise UserError("\n  ".join([f"{arguments.hostfile}: {count}", *found.problems]))
        hosts, processes = len(slots), sum(slots.values())
        print(
            f"{hosts} host{'s' * (hosts > 1)} with {processes} process{'es' * (processes > 1)} "
            f"{'are' if hosts > 1 else 'is'} ready"
        )


if __name__ == "__main__":
    main()
