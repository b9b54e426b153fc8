"""Accuracy by the length of the chain as a picture for TensorBoard: points with 95 % intervals, and where H90 is."""

import numpy as np
import numpy.typing as npt

from dsllm.training.reasoning import ChainAccuracy


def picture(chains: ChainAccuracy) -> npt.NDArray[np.uint8]:
    """(H, W, 3)."""
    # Not pyplot: it keeps figures, and asks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5, 3.2), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = np.array([chains.share(length) for length in chains.lengths])
    low, high = np.array([chains.interval(length) for length in chains.lengths]).T
    # Wilson's interval need not reach a share of 0 or 1 exactly.
    bars = np.maximum(0, [shares - low, high - shares])
    axes.errorbar(chains.lengths, shares, bars, marker="o", capsize=2, color="#0072B2")
    axes.axhline(0.9, linestyle="--", linewidth=1, color="#666666")
    axes.set(xlabel="length of the chain, steps", ylabel="share of right answers", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
