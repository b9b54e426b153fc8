"""Verify a run: its newest complete checkpoint, or the one that is named, and its records, byte by byte.

python launch/verify.py RUN_OR_CHECKPOINT [--all]
"""

from dsllm.command_line import CommandLine, named_path
from dsllm.errors import CheckpointError, user_errors_exit
from dsllm.training.verify import Verdict, verify


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("run", type=named_path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("--all", action="store_true", help="each complete checkpoint of the run")
    arguments = parser.parse_args()
    with user_errors_exit("stopped"):
        damaged = 0
        for found in verify(arguments.run, arguments.all):
            print(found, flush=True)
            damaged += len(found.problems) if isinstance(found, Verdict) else 0
        if damaged:
            raise CheckpointError(
                f"{arguments.run}: {damaged} damaged file{'s' if damaged > 1 else ''}, named above; a damaged "
                f"checkpoint's folder can be removed, the run then goes on from the one before it"
            )


if __name__ == "__main__":
    main()
