"""Grow a checkpoint without training: DIR becomes the folder of a run that begins with the grown model.

python launch/grow.py RUN_OR_CHECKPOINT --out DIR --operator interpose --factor 2
python launch/grow.py RUN_OR_CHECKPOINT --operator '{name: dropin, steps: 100}' --dry_run --save_plan plan.json
python launch/grow.py RUN_OR_CHECKPOINT --out DIR --plan plan.json
python launch/grow.py hf:DIR_OR_NAME --data DIR --out DIR --operator interpose --diverge     a GPT-2 of transformers
deepspeed launch/train.py --config DIR/config.yaml --train.steps 2000        goes on from it
"""

import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsllm.command_line import CommandLine, named_path, positive, yaml_value
from dsllm.config import LoRAConfig, RunConfig
from dsllm.errors import ConfigError, user_errors_exit
from dsllm.growth.plan import GrowthPlan
from dsllm.growth.summary import summary
from dsllm.registry import OPERATORS
from dsllm.section import describe, raise_problems, validate
from dsllm.training.checkpoints import Checkpoint, find_checkpoint
from dsllm.training.importing import imported
from dsllm.training.new_folder import check_free
from dsllm.training.offline import grow, growing_of, plan_growth, read_plan, write_plan
from dsllm.training.pretrained import is_pretrained

PRETRAINED = Path(__file__).with_name("recipes") / "grow_pretrained_gpt2.yaml"


def main() -> None:
    epilog = "\n".join(["operators, and their options with a type and a default:", *operators()])
    parser = CommandLine(__doc__, epilog)
    parser.add_argument("run", metavar="RUN_OR_CHECKPOINT", help="or hf:, and a folder or a name on the hub")
    parser.add_argument("--data", metavar="DIR", help="with hf: the data folder of the new run, if not the recipe's")
    parser.add_argument(
        "--config", type=Path, help=f"with hf: the recipe of the new run (launch/recipes/{PRETRAINED.name})"
    )
    parser.add_argument("--out", type=named_path, metavar="DIR", help="the new run's folder: not there yet, or empty")
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and write no checkpoint")
    parser.add_argument("--save_plan", type=named_path, metavar="FILE", help="write down all that is done, by tensor")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="do what --save_plan wrote down for this checkpoint")
    parser.add_argument("--probe_samples", type=positive, default=8, help="samples that both models are asked on (8)")
    asked = parser.add_argument_group("instead of --plan")
    asked.add_argument(
        "--operator",
        type=yaml_value,
        help="a name; a mapping with options, as '{name: dropin, steps: 100}'; merge, which makes plain weights of "
        "adapters, mixtures and open gates; or detach, which drops adapters",
    )
    asked.add_argument("--factor", type=int, help="by how much blocks multiply (2)")
    asked.add_argument(
        "--optimizer_state",
        choices=["copy", "zero", "asymmetric"],
        help="Adam's moments of copies: their source's (copy), zero as for all then, or the first copy's alone",
    )
    asked.add_argument("--diverge", action="store_true", default=None, help="freeze the blocks under fresh adapters")
    for name, field in LoRAConfig.model_fields.items():
        text = f"{field.description} ({field.default})"
        asked.add_argument(f"--lora.{name}", type=yaml_value, metavar="VALUE", help=text)
    arguments = vars(parser.parse_args())
    with user_errors_exit("stopped; nothing was written, and the same command begins anew"):
        if arguments["out"] is None and not arguments["dry_run"]:
            raise ConfigError("--out: missing; name the new run's folder, or --dry_run")
        if arguments["out"] is not None:
            check_free(arguments["out"])
        with source(arguments) as checkpoint:
            plan = plan_of(checkpoint, arguments)
            print(summary(growing_of(checkpoint, plan), checkpoint.progress.step), flush=True)
            if arguments["save_plan"] is not None:
                write_plan(plan, arguments["save_plan"])
            if not arguments["dry_run"]:
                name = arguments["run"] if is_pretrained(arguments["run"]) else str(checkpoint.path)
                grow(checkpoint, plan, arguments["out"], arguments["probe_samples"], name)
        if not arguments["dry_run"]:
            print(f"{arguments['out']}: grown; train on with --config {arguments['out'] / 'config.yaml'}")


@contextmanager
def source(arguments: dict[str, Any]) -> Iterator[Checkpoint]:
    """What is to be grown: a checkpoint, or a pre-trained model as one."""
    name, out = arguments["run"], arguments["out"]
    if not is_pretrained(name):
        for key in ("config", "data"):
            if arguments[key] is not None:
                raise ConfigError(f"--{key} {arguments[key]}: the checkpoint has its own; it goes with hf: alone")
        yield find_checkpoint(Path(name))
        return
    chosen = {"run_dir": out, "data.path": arguments["data"]}
    overrides = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    config = RunConfig.from_file(arguments["config"] or PRETRAINED, overrides)
    with imported(name, config, Path(tempfile.gettempdir()) if out is None else out.absolute().parent) as checkpoint:
        yield checkpoint


def plan_of(checkpoint: Checkpoint, arguments: dict[str, Any]) -> GrowthPlan:
    """The plan that the command line gives or asks for."""
    adapters = {key[5:]: value for key, value in arguments.items() if key.startswith("lora.") and value is not None}
    keys = [key for key in ("operator", "factor", "optimizer_state", "diverge") if arguments[key] is not None]
    keys += [f"lora.{key}" for key in adapters]
    if arguments["plan"] is not None:
        if keys:
            raise ConfigError(f"--{keys[0]}: the plan of --plan says it already; leave out one of the two")
        return read_plan(arguments["plan"], checkpoint)
    if arguments["operator"] is None:
        raise ConfigError(
            f"--operator: missing; take one of {', '.join(OPERATORS.names())}, merge, detach, or give a --plan"
        )
    if adapters and not arguments["diverge"]:
        raise ConfigError(f"--{keys[-1]}: nothing is frozen under adapters without --diverge; give that, too")
    lora, problems = validate(LoRAConfig, adapters, "lora")
    raise_problems(problems)
    return plan_growth(
        checkpoint,
        arguments["operator"],
        arguments["factor"],
        lora=lora if arguments["diverge"] else None,
        optimizer_state=arguments["optimizer_state"] or "copy",
    )


def operators() -> Iterator[str]:
    for name in OPERATORS.names():
        yield f"  {name}: {(inspect.getdoc(OPERATORS[name]) or '').partition(chr(10))[0]}"
        yield from (f"    {line.replace('--', '', 1)}" for line in describe(OPERATORS[name].options, ""))


if __name__ == "__main__":
    main()
