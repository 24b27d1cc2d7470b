"""Measures every stage beside what it is compared with, in turns, and prints one table.

python -m tools.dev.benchmark_pipeline --corpus=TEXT --teacher=MODEL --work=DIR

The corpus is a text file of 5 to 10 MB of long documents; --mixed_corpus one of documents
of mixed length. Baselines that need jieba, torch or transformers are left out where these
are not installed (pip install '.[peers]'), and so is Ray (pip install '.[ray]'). Nothing else
should compute meanwhile.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from pipeline.base import compute_dtype
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running
from tools.dev.flag_table import FlagTable
from tools.measurement import Row, describe_machine
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.dev.benchmarks.inputs import Inputs

GROUPS = ("masking", "teacher", "records", "sizes", "student", "memory", "ray")


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = FlagTable()
    table.string("corpus", None, "A text file of 5 to 10 MB.")
    table.string("mixed_corpus", None, "A text file of documents of mixed length; --corpus.")
    table.string("large_corpus", None, "A text file several times as large, for the memory.")
    table.string("teacher", None, "A Hugging Face directory of a BERT.")
    table.string("work", None, "A folder for what is made; a second run uses what is there.")
    table.string("groups", ",".join(GROUPS), "What is measured.")
    table.integer("max_seq_length", 512, "Of the inputs to teacher and student.", low=16)
    table.integer("repeats", 5, "Pairs of each measurement.", low=1)
    table.string("output", None, "A new JSON file for what the table says.")
    table.require("corpus", "teacher", "work")
    return table.values


def _sources(inputs: "Inputs", large: Location | None) -> Mapping[str, Callable[[], Iterator[Row]]]:
    """Returns what measures each group; imported when its turn comes."""
    detected, _ = compute_dtype.detect()
    dtypes = list(dict.fromkeys([compute_dtype.FLOAT32, detected]))
    modules = {
        "masking": ("process_rows",),
        "teacher": ("teacher_rows", dtypes),
        "records": ("record_rows",),
        "sizes": ("record_rows",),
        "student": ("student_rows", dtypes),
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
    """Returns three digits, and all of those before the point."""
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


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text, and what each is compared with."""
    titles = ("", "here", "there", "times better", "target", "")
    lines = aligned_lines(titles, [_cells(row) for row in rows])
    lines += ["", "there is, line by line:"]
    for row in rows:
        about = "; ".join(part for part in (row.against, row.note) if part)
        lines.append(f"  {row.name}: {about}")
    return "\n".join(lines)


def machine_line(machine: Mapping[str, Any]) -> str:
    """Returns what a benchmark ran on, in a line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cores']} cores of {machine['processor']} "
        f"({', '.join(machine['instructions'])}), {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, {packages}"
    )


def _file(values: flags.FlagValues, name: str) -> Location | None:
    if values[name].value is None:
        return None
    path = Location.parse(values[name].value, name).expect_local()
    if not path.is_file():
        raise InputError(Setting(name), "a text file", path)
    return path


def _benchmark(values: flags.FlagValues) -> None:
    if values.output:
        Location.parse(values.output, "output").expect_absent()
    chosen = [name.strip() for name in values.groups.split(",")]
    for name in chosen:
        if name not in GROUPS:
            raise InputError(Setting("groups"), f"some of {','.join(GROUPS)}", f"{name!r}")
    corpus, mixed, large = (_file(values, f"{name}corpus") for name in ("", "mixed_", "large_"))
    from tools.dev.benchmarks.inputs import Inputs

    work = Location.parse(values.work, "work").expect_local().make_directory()
    inputs = Inputs(
        work,
        corpus,
        mixed or corpus,
        Location.parse(values.teacher, "teacher"),
        values.repeats,
        values.max_seq_length,
    )
    inputs.check()
    running.import_quietly("tensorflow")
    about, sources, rows = describe_machine(), _sources(inputs, large), []
    print(machine_line(about), flush=True)
    for name in chosen:
        for row in sources[name]():
            rows.append(row)
            print("  ".join(cell for cell in _cells(row) if cell), file=sys.stderr, flush=True)
    print(f"\n{table(rows)}")
    if values.output:
        content = {"machine": about, "rows": [row.to_json() for row in rows]}
        Location.parse(values.output, "output").write_json(content)
        print(f"benchmark: {values.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _benchmark, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
