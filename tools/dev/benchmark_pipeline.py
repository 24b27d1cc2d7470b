"""Compares every stage with its baseline; the two are measured alternately.

python -m tools.dev.benchmark_pipeline --corpus=TEXT --teacher=MODEL --work=DIR [--quick]

--corpus is a text file of 5 to 10 MB with long documents, and --mixed_corpus is one with documents
of mixed length. Baselines with jieba, torch or transformers are left out if these are not
installed (pip install '.[peers]'). So is Ray (pip install '.[ray]'). No other program should
compute at the same time.
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from pipeline.base import compute_dtype, hub_id
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_words, setting
from pipeline.commands import flags, running
from tools.measurement import Row, describe_machine
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.dev.benchmarks.inputs import Inputs

GROUPS = ("masking", "teacher", "records", "sizes", "student", "kernel", "memory", "ray")
# Groups and upper bounds of a quick run.
_QUICK_GROUPS = ("masking", "teacher", "records", "sizes", "student")
_QUICK_LENGTH, _QUICK_REPEATS, _QUICK_CORPUS_BYTES = 128, 2, 2_000_000


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    corpus: Location = setting(dataclasses.MISSING, "Text file of 5 to 10 MB with long documents.")
    teacher: Location = setting(
        dataclasses.MISSING,
        "Hugging Face directory of a BERT, or a model of the hub.",
        hub_files=hub_id.MODEL,
    )
    work: Location = setting(
        dataclasses.MISSING, "Directory for all files; a second run reuses its files."
    )
    mixed_corpus: Location | None = setting(
        None, "Text file with documents of mixed length; `corpus` by default."
    )
    large_corpus: Location | None = setting(
        None, "Text file several times as large as `corpus`, for the group memory."
    )
    groups: tuple[str, ...] = setting(
        GROUPS, "Groups of measurements, separated by commas.", choices=GROUPS, parse=parse_words
    )
    max_seq_length: int = setting(
        512, "Length of the inputs of teacher and student in tokens.", low=16
    )
    repeats: int = setting(5, "Number of pairs of runs for each measurement.", low=1)
    quick: bool = setting(
        False,
        "Whether to measure less, in about ten minutes: 2 MB of each text, at most 128 tokens, at "
        "most 2 pairs, and one dtype, without the groups kernel, memory and ray.",
    )
    output: Location | None = setting(None, "New JSON file for the table.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.work.expect_local()
        if self.output is not None:
            self.output.expect_absent()
        for path in (self.corpus, self.mixed_corpus, self.large_corpus):
            if path is not None and not path.expect_local().is_file():
                raise InputError(path, received="no such file")

    def limited(self) -> "BenchmarkConfig":
        """Returns these settings, with the bounds of a quick run if it is one."""
        if not self.quick:
            return self
        return dataclasses.replace(
            self,
            groups=tuple(name for name in self.groups if name in _QUICK_GROUPS),
            max_seq_length=min(self.max_seq_length, _QUICK_LENGTH),
            repeats=min(self.repeats, _QUICK_REPEATS),
        )


def _sources(
    inputs: "Inputs", config: BenchmarkConfig
) -> Mapping[str, Callable[[], Iterator[Row]]]:
    """Returns the functions that measure the groups; each imports its module when called."""
    detected, _ = compute_dtype.detect()
    dtypes = list(dict.fromkeys([detected] if config.quick else [compute_dtype.FLOAT32, detected]))
    large = config.large_corpus
    modules = {
        "masking": ("process_rows",),
        "teacher": ("teacher_rows", dtypes),
        "records": ("record_rows",),
        "sizes": ("record_rows",),
        "student": ("student_rows", dtypes),
        "kernel": ("process_rows",),
        "memory": ("process_rows", inputs.corpus, large),
        "ray": ("process_rows",),
    }

    def measure(group: str) -> Iterator[Row]:
        if group == "memory" and large is None:
            return iter(())
        module, *arguments = modules[group]
        rows = importlib.import_module(f"tools.dev.benchmarks.{module}")
        return getattr(rows, f"{group.rstrip('s')}_rows")(inputs, *arguments)

    return {group: functools.partial(measure, group) for group in GROUPS}


def _figure(value: float) -> str:
    """Returns a number with three digits, or with all digits before the point if they are more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(row: Row) -> tuple[str, ...]:
    target = []
    if row.least_ratio is not None:
        target.append(f">= {row.least_ratio:.3g}")
    if row.most is not None:
        target.append(f"<= {row.most:g} {row.unit.split()[0]}")
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    if row.spread is not None:
        ratio += f" ({row.spread[0]:.2f}-{row.spread[1]:.2f})"
    return (
        row.name,
        f"{_figure(row.ours)} {row.unit}",
        "" if row.baseline is None else _figure(row.baseline),
        ratio,
        ", ".join(target),
        {None: "", True: "met", False: "missed"}[row.met],
    )


def table(rows: Sequence[Row], machine_kind: str) -> str:
    """Returns the rows as text, and the baseline of each row."""
    titles = ("", "project", "baseline", f"times better on {machine_kind}", "target", "")
    lines = aligned_lines(titles, [_cells(row) for row in rows])
    lines += ["", "baselines and notes:"]
    for row in rows:
        description = "; ".join(text for text in (row.against, row.note) if text)
        lines.append(f"  {row.name}: {description}")
    return "\n".join(lines)


def machine_line(machine: Mapping[str, Any]) -> str:
    """Returns the description of a benchmark's machine, in one line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cores']} cores of {machine['processor']} "
        f"({', '.join(machine['instructions'])}), {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, {packages}"
    )


def _benchmark(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, BenchmarkConfig).limited()
    from tools.dev.benchmarks.inputs import Inputs, write_beginning

    work = config.work.make_directory()
    corpora = [config.corpus, config.mixed_corpus or config.corpus]
    if config.quick:
        corpora = [write_beginning(path, _QUICK_CORPUS_BYTES, work) for path in corpora]
    inputs = Inputs(work, *corpora, config.teacher, config.repeats, config.max_seq_length)
    inputs.check()
    running.import_quietly("tensorflow")
    machine, sources, rows = describe_machine(), _sources(inputs, config), []
    print(machine_line(machine), flush=True)
    for name in config.groups:
        for row in sources[name]():
            rows.append(row)
            print("  ".join(cell for cell in _cells(row) if cell), file=sys.stderr, flush=True)
    print(f"\n{table(rows, str(machine['kind']))}")
    if config.output is not None:
        config.output.write_json({"machine": machine, "rows": [row.to_json() for row in rows]})
        print(f"benchmark: {config.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(BenchmarkConfig), _benchmark, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
