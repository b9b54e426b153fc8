"""Devices that a plan can be made for: those of the data sheets by name, any other by hand.

accelerator_of("h100")
accelerator_of({"memory": 48, "tflops": 180, "watts": 300, "link": 32})
"""

from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat

from dsllm.errors import ConfigError
from dsllm.section import Section, raise_problems, validate


class Accelerator(Section):
    """One device."""

    memory: PositiveFloat
    """GiB."""
    tflops: PositiveFloat
    """Dense products in bf16, 10¹² operations a second, as the data sheet has them."""
    fp32_tflops: PositiveFloat | None = None
    """The same in fp32; null: a tenth of it."""
    watts: NonNegativeFloat = 0.0
    """What it draws under load; 0: not known."""
    link: PositiveFloat = 25.0
    """GB/s to the others of its host, one way."""
    gpu: bool = True
    """Not the processor itself."""

    def peak(self, precision: str) -> float:
        """Operations a second."""
        fp32 = self.tflops / 10 if self.fp32_tflops is None else self.fp32_tflops
        return 1e12 * (fp32 if precision == "fp32" else self.tflops)


KNOWN = {
    "h100": Accelerator(memory=80, tflops=989, fp32_tflops=67, watts=700, link=450),  # SXM; NVIDIA's data sheet of H100
    "h200": Accelerator(memory=141, tflops=989, fp32_tflops=67, watts=700, link=450),  # SXM; its data sheet of H200
    "a100": Accelerator(memory=80, tflops=312, fp32_tflops=19.5, watts=400, link=300),  # SXM, 80 GB; its data sheet
    "rtx3090": Accelerator(memory=24, tflops=71, fp32_tflops=35.6, watts=350, link=16),  # GA102 white paper, fp32 sums
    "cpu": Accelerator(memory=16, tflops=0.2, fp32_tflops=0.2, link=10, gpu=False),  # two cores with AVX-512
}
"""By name."""


def accelerator_of(named: Any) -> Accelerator:
    """The device of a name, or of figures by hand.

    Raises `ConfigError` for a name that is not known, or figures that make no sense.
    """
    if isinstance(named, str):
        if named.lower() not in KNOWN:
            raise ConfigError(
                f"--gpu {named}: not known; take {', '.join(KNOWN)}, or give its figures, as in "
                f"--gpu '{{memory: 48, tflops: 180, watts: 300}}'"
            )
        return KNOWN[named.lower()]
    found, problems = validate(Accelerator, named, "gpu")
    raise_problems(problems)
    assert found is not None
    return found
