"""The picture of `plan_cache`: what a byte buys, one line a codec."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from tools.report.charts import COLOURS

if TYPE_CHECKING:
    from tools.cache_analysis.planning import CachePlan

_MARKERS = "os^D"
# On a logarithmic axis a divergence of 0 stands nowhere.
_SMALLEST = 1e-9


def expect_matplotlib() -> None:
    """Raises InputError unless there is something to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            Setting("picture"),
            "unset, as matplotlib is not installed",
            hint="pip install '.[quickstart]' brings it",
        ) from error


def draw(plans: Sequence["CachePlan"], path: Location) -> None:
    """Draws the mean divergence of each plan over its bytes, 960 × 600 pixels.

    Args:
        plans: those of a codec one after the other; each temperature has a panel.
        path: of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    temperatures = list(plans[0].temperatures)
    columns = min(2, len(temperatures))
    rows = -(-len(temperatures) // columns)
    figure, panels = pyplot.subplots(
        rows,
        columns,
        figsize=(8, 5),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, temperature in zip(panels.flat, temperatures, strict=False):
        _draw_panel(axes, plans, temperature)
        axes.set_title(f"T = {temperature}", fontsize="medium")
    for axes in panels.flat[len(temperatures) :]:
        axes.set_visible(False)
    panels[0, 0].legend(frameon=False, fontsize="small")
    figure.suptitle("Divergence and size of a cache; labels are k, or bits of a number")
    figure.supxlabel("bytes a masked position")
    figure.supylabel("divergence from the teacher, nats")
    with path.atomic_write() as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def _draw_panel(axes: Any, plans: Sequence["CachePlan"], temperature: str) -> None:
    from matplotlib import ticker

    groups = itertools.groupby(plans, key=lambda plan: plan.logit_encoding)
    styles = itertools.cycle(zip(COLOURS, _MARKERS, strict=False))
    for (name, group), (colour, marker) in zip(groups, styles, strict=False):
        chosen = sorted(group, key=lambda plan: plan.position_bytes)
        sizes = [plan.position_bytes for plan in chosen]
        fits = [plan.temperatures[temperature] for plan in chosen]
        divergences = [max(fit.kl.mean, _SMALLEST) for fit in fits]
        axes.plot(sizes, divergences, marker=marker, color=colour, label=name)
        for plan, size, divergence in zip(chosen, sizes, divergences, strict=True):
            axes.annotate(
                plan.label,
                (size, divergence),
                textcoords="offset points",
                xytext=(5, 4),
                color=colour,
                fontsize="x-small",
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
