"""One HTML page about runs: curves, students side by side, speed, tasks, caches, calibration.

python -m tools.report --runs=STUDENT,OTHER --plan=plan.json --output=report.html

The page needs nothing beside itself. Parts that nothing was given for are left out.
It is made with pip install 'offline-distill[report]'.
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings
from pipeline.commands import running


@dataclasses.dataclass(frozen=True)
class ReportConfig(Settings):
    """What the page shows; fields are named as the flags."""

    runs: tuple[Location, ...] = ()
    inference: Location | None = None
    finetune: tuple[Location, ...] = ()
    plan: Location | None = None
    fidelity: tuple[Location, ...] = ()
    comparison: Location | None = None
    caches: tuple[Location, ...] = ()
    title: str = "Distillation report"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: value for name, value in vars(self).items() if name != "title"}
        if not any(given.values()):
            others = ", ".join(f"`{name}`" for name in given if name != "runs")
            raise InputError(Setting("runs"), f"it or one of {others}", "none")


def make_report(config: ReportConfig) -> str:
    """Reads what is to be shown, and returns the page.

    Raises:
        InputError: a file or a package is missing, or a file is malformed.
    """
    from tools.report import caches, curves, inputs, page, scores
    from tools.report.runs import read_runs, short_names

    page.expect_packages()
    runs = read_runs(config.runs)
    speeds = inputs.read_speeds(config.inference) if config.inference else []
    tasks = scores.read_scores(config.finetune)
    planned = inputs.read_plan(config.plan) if config.plan else []
    measured = [inputs.read_fidelity(path) for path in config.fidelity]
    compared = inputs.read_comparison(config.comparison) if config.comparison else []
    names = short_names([path.absolute() for path in config.caches])
    made = list(map(inputs.read_cache, config.caches, names))
    sections = (
        curves.results(runs) if runs else None,
        curves.curves(runs) if runs else None,
        curves.settings(runs) if runs else None,
        scores.speed(runs, speeds),
        scores.tasks(runs, tasks),
        caches.caches(planned, measured, compared, made),
        caches.calibration(runs, made),
    )
    sources = (
        (len(runs), "run"),
        (len(speeds), "measurement of speed", "measurements of speed"),
        (len(tasks), "result on a task", "results on tasks"),
        (len(planned), "planned cache"),
        (len(measured) or len(made) or len(compared), "cache"),
    )
    lead = f"From {', '.join(_counted(*source) for source in sources if source[0])}."
    headline = curves.headline(runs)
    lead = f"{headline} {lead}" if headline else lead
    return page.report_page(config.title, lead, [one for one in sections if one is not None])


def _counted(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = running.FlagTable()
    table.string("runs", "", "Directories of run_distill, separated by commas.")
    table.string("inference", None, "The JSON of benchmark_inference.")
    table.string("finetune", "", "The summary.json of finetune, several separated by commas.")
    table.string("plan", None, "The JSON of plan_cache.")
    table.string("fidelity", "", "The JSON of fidelity_report, several separated by commas.")
    table.string("comparison", None, "The JSON of compare_caches.")
    table.string("caches", "", "Teacher caches, separated by commas.")
    table.string("title", ReportConfig.title, "The page's heading.")
    table.string("output", None, "A new HTML file.")
    table.require("output")
    return table.values


def _locations(values: flags.FlagValues, name: str) -> tuple[Location, ...]:
    return tuple(Location.parse(text, name) for text in values[name].value.split(",") if text)


def _report(values: flags.FlagValues) -> None:
    config = ReportConfig(
        runs=_locations(values, "runs"),
        inference=values.inference,
        finetune=_locations(values, "finetune"),
        plan=values.plan,
        fidelity=_locations(values, "fidelity"),
        comparison=values.comparison,
        caches=_locations(values, "caches"),
        title=values.title,
    )
    output = Location.parse(values.output, "output")
    output.expect_absent()
    output.write_whole(make_report(config).encode("utf-8"))
    print(f"report: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _report, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
