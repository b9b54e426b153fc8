"""Check the hosts of a hostfile before a launch: `python launch/preflight.py --hostfile hosts`."""

from pathlib import Path

from dsllm.command_line import CommandLine
from dsllm.errors import UserError, user_errors_exit
from dsllm.training.hostfile import read_hostfile
from dsllm.training.preflight import problems_of


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--hostfile", type=Path, required=True)
    arguments = parser.parse_args()
    with user_errors_exit():
        hosts = read_hostfile(arguments.hostfile)
        problems = problems_of(hosts)
        if problems:
            raise UserError("\n  ".join([f"{arguments.hostfile}: {len(problems)} of {len(hosts)} hosts", *problems]))
        print(f"{len(hosts)} hosts with {sum(hosts.values())} processes answer and have this interpreter and folder")


if __name__ == "__main__":
    main()
