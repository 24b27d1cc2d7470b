"""One HTML page about runs: curves, students side by side, speed, tasks, caches, calibration.

python -m tools.report --runs=STUDENT,OTHER --plan=plan.json --output=report.html

The page needs nothing beside itself. Parts that nothing was given for are left out.
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What was asked for; fields are named as the flags."""

    runs: tuple[str, ...] = ()
    inference: str | None = None
    finetune: tuple[str, ...] = ()
    plan: str | None = None
    fidelity: tuple[str, ...] = ()
    comparison: str | None = None
    caches: tuple[str, ...] = ()
    title: str = "Distillation report"

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if name != "title"}
        if not any(given.values()):
            others = ", ".join(f"`{name}`" for name in given if name != "runs")
            raise InputError(Setting("runs"), f"it or one of {others}", "none")


def make_report(config: ReportConfig) -> str:
    """Reads what is to be shown, and returns the page.

    Raises:
        InputError: something is missing or is not as it must be.
    """
    from tools.pages import report_caches, report_calibration, report_curves, report_scores
    from tools.pages.html_page import page
    from tools.pages.report_inputs import read_caches, read_comparison, read_fidelity, read_plan
    from tools.pages.report_runs import read_runs, short_names

    runs = read_runs(config.runs)
    speeds = report_scores.read_speeds(config.inference) if config.inference else []
    scores = report_scores.read_scores(config.finetune)
    planned = read_plan(config.plan) if config.plan else []
    measured = [read_fidelity(path) for path in config.fidelity]
    taught = read_comparison(config.comparison) if config.comparison else []
    names = short_names([path.absolute() for path in config.caches])
    made = read_caches(config.caches, names)
    parts = (
        report_curves.results(runs) if runs else None,
        report_curves.curves(runs) if runs else None,
        report_curves.settings(runs) if runs else None,
        report_scores.speed(runs, speeds),
        report_scores.tasks(runs, scores),
        report_caches.caches(planned, measured, taught, made),
        report_calibration.calibration(runs, made),
    )
    told = (
        (len(runs), "run"),
        (len(speeds), "measurement of speed", "measurements of speed"),
        (len(scores), "result on a task", "results on tasks"),
        (len(planned), "planned cache"),
        (len(measured) or len(made) or len(taught), "cache"),
    )
    read = ", ".join(_counted(*one) for one in told if one[0])
    found = report_curves.headline(runs)
    return page(config.title, f"{found} From {read}." if found else f"{read}.", *parts)


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


def _paths(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _report(values: flags.FlagValues) -> None:
    config = ReportConfig(
        runs=_paths(values.runs),
        inference=values.inference,
        finetune=_paths(values.finetune),
        plan=values.plan,
        fidelity=_paths(values.fidelity),
        comparison=values.comparison,
        caches=_paths(values.caches),
        title=values.title,
    )
    Location.parse(values.output, "output").expect_absent()
    Location.parse(values.output, "output").write_whole(make_report(config).encode("utf-8"))
    print(f"report: {values.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _report, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
