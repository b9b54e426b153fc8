"""Chains that lengthen as training goes on: at first only the answers of short ones are asked for.

    start 2, end 24, flops 2e12:    longest chain    2     3    …    24    24
                                    training FLOPs   0   9e10   …   2e12  4e12

It is a function of the FLOPs that a run has spent, not of what it can do by then, so that all arms of a comparison are
asked for the same at the same expense. Problems stay whole: what is not asked for costs its FLOPs nevertheless.
"""

from dsllm.config import CurriculumConfig


def longest_chain(curriculum: CurriculumConfig, flops: float) -> int:
    """The longest chain that is asked for in the step after so many training FLOPs."""
    done = min(flops / curriculum.flops, 1.0)
    return curriculum.start + int(done * (curriculum.end - curriculum.start))
