"""The picture of `plan_cache`: what a byte buys, one line a codec."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
            "matplotlib, which is not installed",
            hint="pip install '.[quickstart]' brings it",
        ) from error


def draw(plans: Sequence["CachePlan"], path: Location) -> None:
    """Draws the mean divergence of each plan over its bytes, 960 × 600 pixels.

    Args:
        plans: those of a codec one after the other.
        path: of the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    groups = itertools.groupby(plans, key=lambda plan: plan.logit_encoding)
    styles = itertools.cycle(zip(COLOURS, _MARKERS, strict=False))
    for (name, group), (colour, marker) in zip(groups, styles, strict=False):
        chosen = list(group)
        sizes = [plan.position_bytes for plan in chosen]
        divergences = [max(plan.kl_dense.mean, _SMALLEST) for plan in chosen]
        axes.plot(sizes, divergences, marker=marker, color=colour, label=name)
        for plan, size, divergence in zip(chosen, sizes, divergences, strict=True):
            axes.annotate(
                f"{plan.truncation_factor}",
                (size, divergence),
                textcoords="offset points",
                xytext=(5, 4),
                color=colour,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.margins(x=0.08)
    axes.set_xlabel("bytes a masked position")
    axes.set_ylabel("divergence from the teacher, nats")
    axes.set_title("what a byte of the cache buys; points are labelled with k")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    with path.atomic_write() as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
