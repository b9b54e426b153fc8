"""The pictures of a comparison, as PNG, in the colours of Okabe and Ito, which all eyes tell apart."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dsllm.comparison.arms import Arm
from dsllm.comparison.record import Point

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*"
SIZE = (7.2, 4.4)
"""Inches; at 150 dots per inch, 1,080 × 660."""
BESIDE = 6
"""With more arms than that the legend stands beside the curves, which it would hide."""
FAR_APART = 5
"""With ends that are further from each other than that, an axis is logarithmic, or one arm would fill it alone."""
AXES: dict[str, tuple[str, Callable[[Point], float]]] = {
    "tokens": ("tokens trained on", lambda point: point.tokens),
    "flops": ("training FLOPs", lambda point: point.flops),
    "seconds": ("seconds of training and growing", lambda point: point.seconds),
}


def plots_of(arms: Sequence[Arm]) -> dict[str, tuple[str, bytes]]:
    """By name: a caption, and the picture. Only those for which there are figures."""
    found: dict[str, tuple[str, bytes]] = {}
    marked = "; triangles: growth events" if any(arm.first.growth for arm in arms) else ""
    several = any(len(arm.runs) > 1 for arm in arms)
    bands = ", mean over seeds, bands of one standard deviation" if several else ""
    for axis, (words, _) in AXES.items():
        if any(len(arm.curve(_loss)) > 1 for arm in arms):
            caption = f"Validation loss against {words}{bands}; the untrained model is left out{marked}."
            found[f"loss_by_{axis}"] = caption, _curves(arms, axis, _loss, "validation loss, nats per target")
    for axis in ("tokens", "flops"):
        if any(len(arm.curve(_area)) > 1 for arm in arms):
            caption = f"Mean accuracy over chain lengths, on val, against {AXES[axis][0]}{bands}{marked}."
            found[f"accuracy_by_{axis}"] = caption, _curves(arms, axis, _area, "mean accuracy over chain lengths")
    if any(arm.first.accuracy for arm in arms):
        caption = "Accuracy by the length of the chain of reasoning, on test; bars: one standard deviation over seeds."
        if any(run.beyond for arm in arms for run in arm.runs):
            caption += " Shaded: chains longer than any in training."
        found["accuracy_by_chain"] = caption, _accuracy(arms)
        caption = "Mean accuracy over chain lengths against loss, a point for each run."
        found["accuracy_by_loss"] = caption, _accuracy_and_loss(arms)
    if any(_phases(arm) for arm in arms):
        caption = "Loss by the place in the longest windows that any model merges, on test, the first seed of each."
        found["loss_by_phase"] = caption, _loss_by_phase(arms)
    for number, arm in enumerate(arms):
        if len(arm.first.divergence) > 1:
            scale = "0: alike, √2: unrelated; white: no neighbouring copies of one block"
            caption = f"{arm.name}: relative distance of copies at the end ({scale})."
            found[f"divergence_{number}"] = caption, _divergence(arm)
    return found


def plot_of_budgets(arms: Mapping[str, Mapping[float, Arm]]) -> dict[str, tuple[str, bytes]]:
    """By name: a caption, and the picture of final losses over budgets; nothing of a single budget."""
    budgets = sorted({budget for of in arms.values() for budget in of})
    if len(budgets) < 2:
        return {}
    figure, axes = _figure()
    for number, of in enumerate(arms.values()):
        # Points of one budget would hide each other: the baseline's stand at it, the others' to its right and left.
        aside = 1.012 ** ((number + 1) // 2 * (1 if number % 2 else -1))
        spent = [budget * aside for budget in of]
        losses = [arm.mean(lambda run: run.test_loss) for arm in of.values()]
        bars = [arm.spread(lambda run: run.test_loss) or 0.0 for arm in of.values()]
        axes.errorbar(spent, losses, bars, label=_label(next(iter(of.values()))), capsize=2, **_style(number))
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    caption = (
        "Test loss at the end of runs by what they spent, each decayed; bars: one standard deviation over seeds; "
        "points of one budget stand side by side."
    )
    picture = _finished(figure, axes, "training FLOPs of a run", "test loss, nats per target")
    return {"loss_by_budget": (caption, picture)}


def _figure() -> tuple[Any, Any]:
    # Not pyplot: it keeps figures, and asks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finished(figure: Any, axes: Any, x: str, y: str, beside: bool = False) -> bytes:
    """The picture, with what its axes are and whose curves are whose; said beside them, if they leave no room."""
    axes.set(xlabel=x, ylabel=y)
    if len(axes.get_legend_handles_labels()[1]) > BESIDE or beside:
        figure.set_size_inches(SIZE[0] + 2, SIZE[1])
        figure.legend(fontsize=9, frameon=False, loc="outside right upper")
    else:
        axes.legend(fontsize=9, facecolor="white", framealpha=0.85, edgecolor="none")
    return _png(figure)


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _label(arm: Arm) -> str:
    """Its name as it stands: matplotlib would leave out a name with _ in front, and read $ as mathematics."""
    return "\u200b" + arm.name.replace("$", r"\$")


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3],
        "linewidth": 1.6,
    }


def _loss(point: Point) -> float:
    return point.loss


def _area(point: Point) -> float | None:
    return point.area


def _curves(arms: Sequence[Arm], axis: str, figure_of: Callable[[Point], float | None], said: str) -> bytes:
    words, of = AXES[axis]
    figure, axes = _figure()
    # What is before any training says nothing of the arms, and makes the rest small.
    curves = [[shown for shown in arm.curve(figure_of) if shown[0].tokens > 0] for arm in arms]
    ends = [of(curve[-1][0]) for curve in curves if curve]
    if ends and max(ends) > FAR_APART * min(ends):
        axes.set_xscale("log")
        words += ", logarithmic"
    for number, (arm, curve) in enumerate(zip(arms, curves, strict=True)):
        x, y = [of(point) for point, _, _ in curve], np.array([mean for _, mean, _ in curve])
        axes.plot(x, y, label=_label(arm), markevery=max(1, len(x) // 12), **_style(number))
        if all(spread is not None for _, _, spread in curve):
            band = np.array([spread or 0.0 for _, _, spread in curve])
            axes.fill_between(x, y - band, y + band, color=COLOURS[number % len(COLOURS)], alpha=0.15, linewidth=0)
        grown = [getattr(event, axis) for event in arm.first.growth if event.operator != "merge"]
        if x:
            marks = {"marker": "^", "markersize": 8, "markerfacecolor": "white", "linestyle": "", "zorder": 3}
            axes.plot(grown, np.interp(grown, x, y), color=COLOURS[number % len(COLOURS)], **marks)
    return _finished(figure, axes, words, said)


def _accuracy(arms: Sequence[Arm]) -> bytes:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    for number, arm in enumerate(arms):
        by_run = [{int(length): share for length, share in (run.accuracy | run.beyond).items()} for run in arm.runs]
        lengths = sorted(set().union(*by_run))
        shares = [[of[length] for of in by_run if length in of] for length in lengths]
        bars = [np.std(of, ddof=1) if len(of) > 1 else 0.0 for of in shares]
        axes.errorbar(lengths, [np.mean(of) for of in shares], bars, label=_label(arm), capsize=2, **_style(number))
    chance = {int(k): share for arm in arms for run in arm.runs for k, share in run.chance.items()}
    if chance:
        lengths = sorted(chance)
        axes.plot(lengths, [chance[k] for k in lengths], color="#666666", linestyle=":", linewidth=1, label="chance")
    beyond = [int(length) for arm in arms for run in arm.runs for length in run.beyond]
    if beyond:
        axes.axvspan(min(beyond) - 0.5, max(beyond) + 0.5, color="#000000", alpha=0.05, linewidth=0)
    axes.axhline(0.9, color="#666666", linestyle="--", linewidth=1)
    axes.text(
        1, 0.91, "0.9, the bound of H90", fontsize=8, color="#666666", ha="right", transform=axes.get_yaxis_transform()
    )
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, axes, "length of the chain, steps", "share of right answers")


def _accuracy_and_loss(arms: Sequence[Arm]) -> bytes:
    figure, axes = _figure()
    for number, arm in enumerate(arms):
        points = [(run.test_loss, np.mean(list(run.accuracy.values()))) for run in arm.runs if run.accuracy]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=_label(arm), **{**_style(number), "linestyle": "", "markersize": 7}
            )
    axes.set_ylim(0, 1.02)
    return _finished(figure, axes, "test loss, nats per target", "mean accuracy over chain lengths")


def _phases(arm: Arm) -> list[float]:
    return next((run.phase_losses for run in arm.runs if run.phase_losses), [])


def _loss_by_phase(arms: Sequence[Arm]) -> bytes:
    figure, axes = _figure()
    for number, arm in enumerate(arms):
        if losses := _phases(arm):
            axes.plot(range(len(losses)), losses, label=_label(arm), **_style(number))
    return _finished(
        figure, axes, "position in the sample, modulo the window", "test loss, nats per target", beside=True
    )


def _divergence(arm: Arm) -> bytes:
    pairs = {tuple(map(int, pair.split("-"))): value for pair, value in arm.first.divergence.items()}
    size = 1 + max(max(pair) for pair in pairs)
    distances = np.full((size, size), np.nan)
    np.fill_diagonal(distances, 0.0)
    for (a, b), value in pairs.items():
        distances[a, b] = distances[b, a] = value
    figure, axes = _figure()
    axes.grid(False)
    image = axes.imshow(distances, cmap="viridis", vmin=0.0, vmax=2**0.5)
    figure.colorbar(image, label="relative distance")
    axes.set_xlabel("block")
    axes.set_ylabel("block")
    axes.set_xticks(range(size))
    axes.set_yticks(range(size))
    return _png(figure)
