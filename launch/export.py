"""Write a run's model for other tools: a folder that transformers opens, or its adapters as peft has them.

python launch/export.py RUN_OR_CHECKPOINT --format hf --out DIR [--dtype bf16]
python launch/export.py RUN_OR_CHECKPOINT --format peft --out DIR      DIR/base, a folder of hf, and DIR/adapter on it
"""

from pathlib import Path

from dsllm.command_line import CommandLine, named_path
from dsllm.errors import user_errors_exit
from dsllm.exchange.adapters import export_adapters
from dsllm.exchange.export import export
from dsllm.exchange.settled import check_finished
from dsllm.training.checkpoints import find_checkpoint
from dsllm.training.precision import DTYPES


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT", help="a finished run, or any checkpoint of one")
    parser.add_argument("--format", choices=["hf", "peft"], required=True)
    parser.add_argument("--out", type=named_path, metavar="DIR", required=True, help="not there yet, or empty")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="of the weights (fp32, as trained)")
    arguments = parser.parse_args()
    with user_errors_exit("stopped; nothing was written, and the same command begins anew"):
        checkpoint = find_checkpoint(arguments.run)
        check_finished(arguments.run, checkpoint)
        write = export if arguments.format == "hf" else export_adapters
        write(checkpoint, arguments.out, arguments.dtype)
        print(f"{arguments.out}: step {checkpoint.progress.step:,} of {arguments.run}")


if __name__ == "__main__":
    main()
