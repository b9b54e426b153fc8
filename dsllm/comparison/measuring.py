"""What is measured of the models of finished runs.

Times in inference and losses by phase are, when runs are compared, all in one go: so that a row's figures belong
together.
"""

from collections.abc import Mapping
from pathlib import Path

from dsllm.comparison.inference import inference_device, measure_inference
from dsllm.comparison.phases import measure_phases
from dsllm.comparison.record import RunRecord
from dsllm.data.problems import chance_of
from dsllm.machine import machine_name
from dsllm.training.beyond import accuracy_beyond
from dsllm.training.checkpoints import find_checkpoint


def with_beyond(record: RunRecord, folder: Path) -> RunRecord:
    """The record of a run on problems with its accuracy on chains beyond those of `test`; as it is of others.

    Nor is there any where `accuracy_beyond` has none.
    """
    chains = accuracy_beyond(folder) if record.asked and not record.beyond else None
    if chains is None:
        return record
    longer = [length for length in chains.lengths if str(length) not in record.asked]
    chance = chance_of(Path(find_checkpoint(folder).config().data.paths[0]))
    update = {
        "beyond": {str(length): chains.share(length) for length in longer},
        "asked_beyond": {str(length): chains.asked[length] for length in longer},
        "chance": record.chance | {str(length): chance[str(length)] for length in longer if str(length) in chance},
    }
    return record.model_copy(update=update)


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
                "inference_on": machine_name(inference_device()),
                "phase_losses": phases.get(name, []),
            }
        )
        for name, (prefill, decode) in measure_inference(folders).items()
    }
