"""What a run will take before it begins: memory for each of DeepSpeed's stages, traffic, time, energy and cost.

python launch/plan.py --config launch/recipes/gpt2_124m.yaml --nodes 8 --gpus 8 --gpu h100 [--interconnect 400]
python launch/plan.py --config launch/recipes/demo_gpt2.yaml --gpus 2 --gpu cpu [--section.key value ...]
python launch/plan.py --config RECIPE --gpus 4 --gpu '{memory: 48, tflops: 180, watts: 300}' [--price 2.5]
"""

import json

from dsllm.command_line import CommandLine, parse, positive, yaml_value
from dsllm.errors import ConfigError, user_errors_exit
from dsllm.planning.accelerators import KNOWN, accelerator_of
from dsllm.planning.plan import SHARE_OF_PEAK, Cluster, plan, planned_precision, with_known_sizes
from dsllm.planning.words import record, table, totals


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--config", required=True, metavar="RECIPE")
    parser.add_argument("--nodes", type=positive, default=1, help="hosts (1)")
    parser.add_argument("--gpus", type=positive, default=1, help="devices, and so ranks, of each host (1)")
    known = ", ".join(KNOWN)
    parser.add_argument("--gpu", type=yaml_value, required=True, metavar="NAME", help=f"{known}, or figures by hand")
    parser.add_argument("--interconnect", type=positive, default=100, metavar="GBIT", help="Gbit/s of a host (100)")
    parser.add_argument("--share", type=float, help="of the peak that products reach (0.35 on GPUs, 0.45 on CPUs)")
    parser.add_argument("--price", type=float, help="of a device's hour, in any currency")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")
    arguments, rest = parser.parse_known_args()
    with user_errors_exit():
        config = parse(["--config", arguments.config, *rest], "").config
        device = accelerator_of(arguments.gpu)
        share = SHARE_OF_PEAK[device.gpu] if arguments.share is None else arguments.share
        if not 0 < share <= 1:
            raise ConfigError(f"--share {share}: take a part of the peak, more than 0 and up to 1")
        cluster = Cluster(arguments.nodes, arguments.gpus, device, arguments.interconnect)
        config, vocabulary = with_known_sizes(config)
        precision = planned_precision(config, device)
        stages = list(plan(config, cluster, precision, share))
        facts = totals(config, cluster, stages, arguments.price)
        if arguments.json:
            print(json.dumps({"precision": precision, "ranks": cluster.ranks, "stages": record(stages), "run": facts}))
            return
        assumed = [
            f"products in {precision} reach {share:.0%} of {device.peak(precision) / 1e12:g} TFLOP/s",
            f"hosts send {arguments.interconnect} Gbit/s, devices of a host {device.link:g} GB/s, by rings, alone",
            "evaluation, checkpoints and growth events take no time",
            *([vocabulary] if vocabulary else []),
        ]
        print(table(config, cluster, stages, assumed))
        if arguments.price is not None:
            print(f"  cost: {facts['cost'][0]:,.4g} to {facts['cost'][1]:,.4g}")


if __name__ == "__main__":
    main()
