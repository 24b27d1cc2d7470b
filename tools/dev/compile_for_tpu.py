"""Does a recipe fit on a TPU, and how long would a step take? Asks XLA's compiler; needs no TPU.

python -m tools.dev.compile_for_tpu --recipe=roberta_wwm --topology=v5e:2x2

Compiles the step of run_distill, and the teacher's forward pass of stage 1b, for a named
TPU topology, the batch divided among its chips. `pip install '.[jax]' libtpu` brings what
it needs. A program takes minutes to compile.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from pipeline.base.compute_dtype import BFLOAT16, FLOAT32
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running
from tools.dev.flag_table import FlagTable
from tools.dev.workloads import recipes
from tools.dev.workloads.step_programs import Workload
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.dev.workloads.tpu_compiler import Program, Topology

_PARTS = {"step": ("step",), "teacher": ("teacher",), "both": ("step", "teacher")}
# How much larger the next batch may be, and how often the line may leave more than half
# of the interval before it is trusted no more.
_MOST_GROWTH = 4
_TRIES_BY_LINE = 2
# Of create_teacher_output_data.
_PREDICT_BATCH_SIZE = 64


def find_largest(
    compile_batch: Callable[[int], "Program"], *, start: int, multiple: int, usable_bytes: float
) -> list["Program"]:
    """Finds the largest batch that fits: the next multiple was compiled too, and does not.

    Memory is nearly a line over the batch, so that two programs tell about where it
    crosses what there is. Where it is none, as the compiler saves memory when that gets
    scarce, steps grow until a batch does not fit, and then the interval is halved.

    Args:
        compile_batch: compiles a batch of a size.
        start: the first size, a multiple.
        multiple: what sizes are multiples of.
        usable_bytes: of a chip's memory.

    Returns:
        the programs in the order in which they were compiled; none of them fits where
        not even `multiple` examples do.
    """
    programs: list[Program] = []
    size, low, high = start, 0, None
    beyond, misled = 0, 0
    while high is None or high - low > multiple:
        programs.append(compile_batch(size))
        width = math.inf if high is None else high - low
        low, high = (size, high) if programs[-1].fits else (low, size)
        size = _next_size(programs, multiple, usable_bytes)
        if high is None:
            least = low + (multiple << beyond)
            beyond += size < least
            size = min(max(size, least), _MOST_GROWTH * low)
        else:
            misled += 2 * (high - low) > width
            if size >= high or misled >= _TRIES_BY_LINE:
                size = (low + high) // 2 // multiple * multiple
            size = max(size, low + multiple)
    return programs


def _next_size(programs: Sequence["Program"], multiple: int, usable_bytes: float) -> int:
    """Returns the largest multiple below where memory should be used up."""
    known = [one for one in programs if one.memory_bytes]
    known.sort(key=lambda one: abs(one.memory_bytes - usable_bytes))
    if not known:
        return programs[-1].batch_size // 2 // multiple * multiple
    nearest = known[0]
    slope = nearest.memory_bytes / nearest.batch_size
    if len(known) > 1:
        other = known[1]
        rise = (nearest.memory_bytes - other.memory_bytes) / (nearest.batch_size - other.batch_size)
        slope = rise if rise > 0 else slope
    size = nearest.batch_size + (usable_bytes - nearest.memory_bytes) / slope
    return int(size // multiple) * multiple


def largest_that_fits(programs: Sequence["Program"]) -> int | None:
    """Returns the size of the largest batch that fits, if any does."""
    return max((one.batch_size for one in programs if one.fits), default=None)


def table(programs: Sequence["Program"], topology: "Topology") -> str:
    """Returns the table as text."""
    titles = ["part", "batch", "fits", "memory", "arguments", "temporaries", "TFLOP", "roofline"]
    rows = [_cells(program, topology) for program in programs]
    return "\n".join(
        [
            *aligned_lines([*titles, "compiler", "examples/s", "compiled in"], rows),
            "",
            f"{topology.name}: {topology.num_chips} chips; memory, arguments and temporaries in "
            f"GiB of a chip's {topology.usable_bytes / 2**30:.2f}",
            "arguments: weights, optimizer and batch; TFLOP: of a chip and a step, as compiled",
            f"roofline: of TFLOP over {topology.chip.peak_flops / 1e12:g} TFLOP/s and bytes "
            f"accessed over {topology.chip.bandwidth / 1e9:g} GB/s, the longer; examples/s by it",
            *_compiler_note(programs),
        ]
    )


def _compiler_note(programs: Sequence["Program"]) -> list[str]:
    if all(one.compiler_estimates for one in programs if one.fits):
        return ["compiler: its own estimate of the time"]
    return ["compiler: its own estimate of the time is unusable here: it is no positive number"]


def _gib(count: float | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f}"


def _cells(program: "Program", topology: "Topology") -> list[str]:
    seconds = program.roofline_seconds(topology.chip)
    return [
        program.part,
        str(program.batch_size),
        "yes" if program.fits else "no",
        program.memory_gib,
        _gib(program.argument_bytes),
        _gib(program.temporary_bytes),
        "" if program.flops is None else f"{program.flops / 1e12:.2f}",
        "" if seconds is None else f"{seconds * 1e3:.0f} ms",
        f"{program.compiler_seconds * 1e3:.0f} ms" if program.compiler_estimates else "",
        "" if seconds is None else f"{program.batch_size / seconds:.0f}",
        f"{program.compile_seconds:.0f} s",
    ]


def to_json(
    programs: Sequence["Program"], workload: Workload, topology: "Topology"
) -> dict[str, Any]:
    """Returns what the table says, and what was compiled, as JSON values."""
    described = [
        dataclasses.asdict(program)
        | {
            "roofline_seconds": program.roofline_seconds(topology.chip),
            "compiler_estimates": program.compiler_estimates,
        }
        for program in programs
    ]
    return {
        "topology": topology.name,
        "num_chips": topology.num_chips,
        "usable_bytes": topology.usable_bytes,
        "chip": dataclasses.asdict(topology.chip),
        "student": workload.student.to_dict(),
        "teacher": workload.teacher.to_dict(),
        "max_seq_length": workload.max_seq_length,
        "max_predictions_per_seq": workload.max_predictions_per_seq,
        "compute_dtype": workload.config.compute_dtype,
        "recompute_activations": workload.config.recompute_activations,
        "programs": described,
    }


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = FlagTable()
    table.string("topology", "v5e:2x2", "TPU generation and layout of the chips.")
    _define_recipe(table)
    table.choice("part", "both", "What to compile.", of=list(_PARTS))
    table.integer(
        "per_step_batch_size",
        None,
        "Examples of a step on all chips; the recipe's --train_batch_size by default.",
        low=1,
    )
    table.integer(
        "predict_batch_size", _PREDICT_BATCH_SIZE, "The same for the teacher's forward.", low=1
    )
    table.boolean(
        "find_batch", False, "Find the largest batch that fits; begins with the given one."
    )
    table.integer(
        "batch_multiple",
        None,
        "With --find_batch: what batches are multiples of; the chips by default.",
        low=1,
    )
    table.string("json", None, "A new JSON file for what the table says.")
    return table.values


def _define_recipe(table: FlagTable) -> None:
    names = list(recipes.RECIPES)
    table.choice("recipe", names[0], "A name in data_specs/recipes.", of=names)
    shapes = f"a config.json or one of {', '.join(recipes.SHAPES)}"
    table.string("student_config", None, f"Instead of the recipe's student: {shapes}.")
    table.string("teacher_config", None, "Instead of the recipe's teacher: the same.")
    table.integer("max_seq_length", 512, "The length of the inputs.", low=1)
    table.integer(
        "max_predictions_per_seq", None, "Masked positions; the recipe's by default.", low=1
    )
    table.choice(
        "compute_dtype",
        BFLOAT16,
        f"As of run_distill, where auto is {BFLOAT16} on a TPU.",
        of=[FLOAT32, BFLOAT16],
    )
    table.boolean("recompute_activations", False, "As of run_distill.")


def _workload(values: flags.FlagValues) -> Workload:
    workload = recipes.read_recipe(
        values.recipe,
        student_config=values.student_config,
        teacher_config=values.teacher_config,
        max_seq_length=values.max_seq_length,
        max_predictions_per_seq=values.max_predictions_per_seq,
    )
    config = dataclasses.replace(
        workload.config,
        compute_dtype=values.compute_dtype,
        recompute_activations=values.recompute_activations,
    )
    return dataclasses.replace(workload, config=config)


def _batch_size(values: flags.FlagValues, workload: Workload, part: str) -> tuple[int, str]:
    """Returns the first batch of a part, and the flag that says so."""
    if part == "teacher":
        return values.predict_batch_size, "predict_batch_size"
    given = values.per_step_batch_size
    return given or workload.config.train_batch_size, "per_step_batch_size"


def _expect_multiple(flag: str, size: int, multiple: int, of: str) -> None:
    if size % multiple:
        raise InputError(
            Setting(flag), f"a multiple of {multiple}, {of}, as each gets an equal share", size
        )


def _compile_parts(
    values: flags.FlagValues, workload: Workload, topology: "Topology"
) -> list["Program"]:
    """Compiles what was asked for, or batch after batch of it."""
    from tools.dev.workloads import tpu_compiler

    chips = f"the chips of {topology.name}"
    multiple = values.batch_multiple or topology.num_chips
    _expect_multiple("batch_multiple", multiple, topology.num_chips, chips)
    sizes = {part: _batch_size(values, workload, part) for part in _PARTS[values.part]}
    for size, flag in sizes.values():
        if values.find_batch:
            _expect_multiple(flag, size, multiple, "--batch_multiple")
        _expect_multiple(flag, size, topology.num_chips, chips)
    programs: list[Program] = []
    for part, (size, _) in sizes.items():
        compile_batch = functools.partial(
            tpu_compiler.compile_part, workload, part, topology=topology
        )
        if values.find_batch:
            programs += find_largest(
                compile_batch, start=size, multiple=multiple, usable_bytes=topology.usable_bytes
            )
        else:
            programs.append(compile_batch(size))
    return programs


def _compile(values: flags.FlagValues) -> None:
    workload = _workload(values)
    if values.json:
        Location.parse(values.json, "json").expect_absent()
    from tools.dev.workloads import tpu_compiler

    topology = tpu_compiler.open_topology(values.topology)
    programs = _compile_parts(values, workload, topology)
    print(table(programs, topology))
    if values.find_batch:
        for part in _PARTS[values.part]:
            found = largest_that_fits([one for one in programs if one.part == part])
            print(f"{part}: the largest batch that fits is {found or 'none'}")
    if values.json:
        Location.parse(values.json, "json").write_json(to_json(programs, workload, topology))
        print(f"json: {values.json}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _compile, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
