"""Writes an HTML page about runs: results, curves, speed, scores on tasks, caches, calibration.

offline_distill report --runs=STUDENT,OTHER --plan=plan.json --output=report.html

The page is one self-contained file. Sections without input are left out.
Requires pip install 'offline-distill[report]'.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_words, setting
from pipeline.commands import flags, running


def _list(help: str) -> Any:
    return setting((), f"{help}, separated by commas.", parse=parse_words)


@dataclasses.dataclass(frozen=True)
class ReportConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    runs: tuple[Location, ...] = _list("Output directories of run_distill")
    inference: Location | None = setting(None, "JSON file from benchmark_inference --output.")
    finetune: tuple[Location, ...] = _list("summary.json files from finetune")
    plan: Location | None = setting(None, "JSON file from plan_cache --output.")
    fidelity: tuple[Location, ...] = _list("JSON files from fidelity_report")
    comparison: Location | None = setting(None, "JSON file from compare_caches --output.")
    caches: tuple[Location, ...] = _list("Teacher caches")
    title: str = setting("Distillation report", "Heading of the page.")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: value for name, value in vars(self).items() if name != "title"}
        if not any(given.values()):
            others = ", ".join(f"`{name}`" for name in given if name != "runs")
            raise InputError(Setting("runs"), f"given, or one of {others}", "none")


def make_report(config: ReportConfig) -> str:
    """Reads the inputs, and returns the page.

    Raises:
        InputError: a file or a package is missing, or a file is malformed.
    """
    from tools.report import caches, curves, inputs, page, scores
    from tools.report.runs import read_runs, short_names

    page.expect_packages()
    runs = read_runs(config.runs)
    speeds = inputs.read_struct(config.inference, inputs.Speeds).rows if config.inference else []
    tasks = scores.read_scores(config.finetune)
    planned = inputs.read_plan(config.plan) if config.plan else []
    measured = [inputs.read_fidelity(path) for path in config.fidelity]
    compared = []
    if config.comparison:
        compared = inputs.read_struct(config.comparison, list[inputs.CacheStudents])
    names = short_names([path.absolute() for path in config.caches])
    cache_facts = list(map(inputs.read_cache, config.caches, names))
    sections = (
        curves.results_section(runs, cache_facts) if runs else None,
        curves.curves_section(runs) if runs else None,
        curves.settings_section(runs) if runs else None,
        scores.speed_section(runs, speeds),
        scores.tasks_section(runs, tasks),
        caches.caches_section(planned, measured, compared, cache_facts),
        caches.calibration_section(runs, cache_facts),
    )
    sources = (
        (len(runs), "run"),
        (len(speeds), "measurement of speed", "measurements of speed"),
        (len(tasks), "result on a task", "results on tasks"),
        (len({(plan.encoding, plan.k) for plan in planned}), "planned cache"),
        (len(measured) or len(cache_facts) or len(compared), "cache"),
    )
    counts = ", ".join(_counted(*source) for source in sources if source[0])
    lead = f"{curves.headline(runs) or ''} From {counts}.".lstrip()
    return page.report_page(config.title, lead, list(filter(None, sections)))


def _counted(count: int, singular: str, plural: str | None = None) -> str:
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


@dataclasses.dataclass(frozen=True)
class OutputSettings(Settings):
    """The file that the page is written to."""

    output: Location = setting(dataclasses.MISSING, "New HTML file.")


def _report(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, ReportConfig)
    output = flags.read_config(values, OutputSettings).output
    output.expect_absent()
    output.write_whole(make_report(config).encode("utf-8"))
    print(f"report: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    table = flags.define_flags(ReportConfig, OutputSettings)
    return running.run(table, _report, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
