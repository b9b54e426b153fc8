"""What is measured of finished runs when they are compared, all in one go, so that a row's figures belong together."""

from collections.abc import Mapping
from pathlib import Path

from dsllm.comparison.inference import measure_inference
from dsllm.comparison.phases import measure_phases
from dsllm.comparison.record import RunRecord
from dsllm.machine import default_device, machine_name


def measured(records: Mapping[str, RunRecord], folders: Mapping[str, Path]) -> dict[str, RunRecord]:
    """By name the records, with their times in inference (ms) and losses by phase (nats per token) on this machine.

    `folders` has their folders by the same names. A model with a context of one token has no times, and is left out.
    """
    phases = measure_phases(folders)
    return {
        name: records[name].model_copy(
            update={
                "prefill_ms": prefill,
                "decode_ms": decode,
                "inference_on": machine_name(default_device()),
                "phase_losses": phases.get(name, []),
            }
        )
        for name, (prefill, decode) in measure_inference(folders).items()
    }
