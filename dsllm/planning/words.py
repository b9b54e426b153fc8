"""A plan as a table for people, and as JSON for scripts."""

from collections.abc import Iterator, Sequence
from typing import Any

from dsllm.config import RunConfig
from dsllm.planning.plan import GIB, RESERVED, Cluster, Stage

DAY = 86_400.0


def table(config: RunConfig, cluster: Cluster, stages: Sequence[Stage], assumed: Sequence[str]) -> str:
    """All of a plan."""
    lines: list[str] = []
    for number, stage in enumerate(stages, start=1):
        for part in (_model(stage, number, len(stages)), _memory(stage, cluster), _time(config, stage, cluster)):
            lines += [*part, ""]
    lines += [*_whole(config, cluster, stages), "", "assumed:", *(f"  {line}" for line in assumed)]
    return "\n".join(lines)


def _model(stage: Stage, number: int, of: int) -> Iterator[str]:
    section = stage.model
    which = f"model {number} of {of}, {stage.steps:,} steps: " if of > 1 else ""
    yield f"{which}{section.name}, {section.n_layer} layers, {stage.parameters / 1e6:,.1f} M parameters" + (
        f", of which {stage.trainable / 1e6:,.1f} M train" if stage.trainable != stage.parameters else ""
    )
    parts = sorted(stage.parts.items(), key=lambda part: -part[1])
    yield "  " + ", ".join(f"{kind} {count / 1e6:,.2f} M" for kind, count in parts)


def _memory(stage: Stage, cluster: Cluster) -> Iterator[str]:
    has = cluster.device.memory
    yield f"  GiB per rank, of {has:g}" + (f" less {RESERVED:g} for the driver and NCCL" if cluster.device.gpu else "")
    kinds = ["weights", "masters", "moments", "gradients", "activations", "loss", "buckets", "rest"]
    yield "  " + f"{'DeepSpeed':<14}" + "".join(f"{kind:>12}" for kind in [*kinds, "peak", "host"])
    for way in stage.ways:
        parts = dict(way.memory.parts)
        known = {kind: parts.pop(kind, 0.0) for kind in kinds[:-1]}
        cells = [*known.values(), sum(parts.values()), way.memory.peak, way.memory.host]
        row = f"{way.name:<14}" + "".join(f"{value / GIB:>12.2f}" for value in cells)
        yield f"  {row}  {'fits' if way.fits else 'does not fit'}"


def _time(config: RunConfig, stage: Stage, cluster: Cluster) -> Iterator[str]:
    low, high = stage.seconds
    tokens, peak = config.train.global_batch_size * stage.model.context, cluster.ranks * cluster.device.tflops * 1e12
    yield (
        f"  a step of {tokens:,} tokens with {stage.ways[0].name}: products {_seconds(stage.compute)}, traffic "
        f"{_seconds(stage.transfer)} ({stage.bytes_sent / 1e9:,.3g} GB that each host sends)"
    )
    for what, seconds in (("all traffic hidden behind products", low), ("none of it", high)):
        yield (
            f"    {what}: {_seconds(seconds)}, {tokens / seconds:,.0f} tokens/s, "
            f"{DAY * tokens / seconds / 1e9:,.4g} G tokens a day, MFU {stage.flops / seconds / peak:.0%}"
        )


def _whole(config: RunConfig, cluster: Cluster, stages: Sequence[Stage]) -> Iterator[str]:
    facts = totals(config, cluster, stages, None)
    low, high = (_duration(days * DAY) for days in facts["days"])
    yield (
        f"the run: {facts['tokens']:,} tokens, {facts['flops']:.3g} FLOPs, {low}{'' if low == high else f' to {high}'} "
        f"on {cluster.ranks} device{'s' * (cluster.ranks > 1)}, {facts['device_hours'][1]:,.4g} device hours at most"
    )
    if cluster.device.watts:
        yield f"  {facts['kilowatt_hours'][1]:,.4g} kWh at most, by the devices alone"


def totals(config: RunConfig, cluster: Cluster, stages: Sequence[Stage], price: float | None) -> dict[str, Any]:
    """What the whole run takes, where all traffic is hidden and where none is; `price` of a device's hour."""
    seconds = [sum(stage.steps * stage.seconds[which] for stage in stages) for which in (0, 1)]
    hours = [cluster.ranks * value / 3600 for value in seconds]
    facts: dict[str, Any] = {
        "tokens": config.train.global_batch_size * config.model.context * sum(stage.steps for stage in stages),
        "flops": sum(stage.steps * stage.flops for stage in stages),
        "days": [value / DAY for value in seconds],
        "device_hours": hours,
        "kilowatt_hours": [value * cluster.device.watts / 1000 for value in hours],
    }
    return facts if price is None else {**facts, "cost": [value * price for value in hours]}


def record(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The stages for scripts, in bytes and seconds."""
    return [
        {
            "model": stage.model.model_dump(mode="json"),
            "steps": stage.steps,
            "parameters": stage.parameters,
            "trainable_parameters": stage.trainable,
            "parts": dict(stage.parts),
            "memory": {
                way.name: {
                    "peak": way.memory.peak,
                    "host": way.memory.host,
                    "fits": way.fits,
                    "forward": dict(way.memory.forward),
                    "backward": dict(way.memory.backward),
                }
                for way in stage.ways
            },
            "bytes_sent_per_step": stage.bytes_sent,
            "compute_seconds": stage.compute,
            "transfer_seconds": stage.transfer,
            "step_seconds": list(stage.seconds),
            "flops_per_step": stage.flops,
        }
        for stage in stages
    ]


def _duration(seconds: float) -> str:
    for unit, name in ((DAY, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:,.3g} {name}"
    return _seconds(seconds)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
