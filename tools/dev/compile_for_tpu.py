"""Compiles a recipe for a TPU, on any machine, and reports memory, operations and time.

python -m tools.dev.compile_for_tpu --recipe=roberta_wwm --topology=v5e:2x2

Compiles the training step of run_distill and the teacher's forward pass of capture for a TPU
topology. The batch is divided among its chips. The tool requires `pip install '.[jax]' libtpu`.
Compiling a program takes minutes.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from pipeline.base.compute_dtype import BFLOAT16, FLOAT32
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from tools.dev.workloads import recipes
from tools.dev.workloads.step_programs import PARTS, Workload
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.dev.workloads.tpu_compiler import Program, Topology

# Maximum growth of the batch size from one trial to the next.
_MOST_GROWTH = 4
# Maximum number of linear estimates that shrink the search interval by less than half. Afterwards
# it is bisected.
_TRIES_BY_LINE = 2


@dataclasses.dataclass(frozen=True)
class CompileConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    topology: str = setting("v5e:2x2", "TPU generation and layout of the chips.")
    recipe: str = setting(
        next(iter(recipes.RECIPES)),
        "Name of a recipe in data_specs/recipes.",
        choices=tuple(recipes.RECIPES),
    )
    student_config: str | None = setting(
        None,
        f"Replaces the recipe's student: a config.json or one of {', '.join(recipes.SHAPES)}.",
    )
    teacher_config: str | None = setting(
        None, "Replaces the recipe's teacher; takes the same values as `student_config`."
    )
    max_seq_length: int = setting(512, "Length of the inputs in tokens.", low=1)
    max_predictions_per_seq: int | None = setting(
        None, "Number of masked positions of each input; by default that of the recipe.", low=1
    )
    compute_dtype: str = setting(
        BFLOAT16, "Precision of student and teacher.", choices=(FLOAT32, BFLOAT16)
    )
    recompute_activations: bool = setting(
        False, "Whether to recompute activations, as for run_distill."
    )
    part: str = setting("both", "Program to compile.", choices=tuple(PARTS))
    per_step_batch_size: int | None = setting(
        None,
        "Number of examples of a step on all chips; by default the recipe's `train_batch_size`.",
        low=1,
    )
    # The default is that of create_teacher_output_data.
    predict_batch_size: int = setting(
        64, "Number of examples of the teacher's batch on all chips.", low=1
    )
    find_batch: bool = setting(
        False,
        "Whether to find the largest batch that fits; the search starts with the given batch.",
    )
    batch_multiple: int | None = setting(
        None,
        "With `find_batch`, all batches are multiples of this; by default the number of chips.",
        low=1,
    )
    json: Location | None = setting(None, "New JSON file for the table.")


def find_largest(
    compile_batch: Callable[[int], "Program"], *, start: int, multiple: int, usable_bytes: float
) -> list["Program"]:
    """Finds the largest batch that fits.

    The search ends when one batch fits and the next multiple does not. Memory is almost a linear
    function of the batch size, so two programs give an estimate of the limit. The function is not
    linear if the compiler saves memory when it becomes scarce. Then sizes grow until a batch does
    not fit. Later estimates that shrink the interval too little are replaced by bisection.

    Args:
        compile_batch: compiles a batch of a given size.
        start: the first size, a multiple of `multiple`.
        multiple: all sizes are multiples of it.
        usable_bytes: usable memory of a chip in bytes.

    Returns:
        the programs in the order in which they were compiled. No program fits if even `multiple`
        examples do not fit.
    """
    programs: list[Program] = []
    size, low, high = start, 0, None
    doublings, poor_estimates = 0, 0
    while high is None or high - low > multiple:
        programs.append(compile_batch(size))
        width = math.inf if high is None else high - low
        low, high = (size, high) if programs[-1].fits else (low, size)
        size = _next_size(programs, multiple, usable_bytes)
        if high is None:
            least = low + (multiple << doublings)
            doublings += size < least
            size = min(max(size, least), _MOST_GROWTH * low)
        else:
            poor_estimates += 2 * (high - low) > width
            if size >= high or poor_estimates >= _TRIES_BY_LINE:
                size = (low + high) // 2 // multiple * multiple
            size = max(size, low + multiple)
    return programs


def _next_size(programs: Sequence["Program"], multiple: int, usable_bytes: float) -> int:
    """Returns the largest multiple that should fit, by a linear estimate of the memory."""
    known = [program for program in programs if program.memory_bytes]
    known.sort(key=lambda program: abs(program.memory_bytes - usable_bytes))
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
    """Returns the size of the largest batch that fits; None if none fits."""
    return max((program.batch_size for program in programs if program.fits), default=None)


def table(programs: Sequence["Program"], topology: "Topology") -> str:
    """Returns the table as text."""
    titles = ["part", "batch", "fits", "memory", "arguments", "temporaries", "TFLOP", "roofline"]
    rows = [_cells(program, topology) for program in programs]
    return "\n".join(
        [
            *aligned_lines([*titles, "compiler", "examples/s", "compiled in"], rows),
            "",
            f"{topology.name}: {topology.num_chips} chips; memory, arguments and temporaries are "
            f"in GiB per chip, of {topology.usable_bytes / 2**30:.2f} GiB that are usable",
            "arguments: weights, optimizer and batch; TFLOP: operations per chip and step",
            f"roofline: the longer of TFLOP at {topology.chip.peak_flops / 1e12:g} TFLOP/s and "
            f"bytes accessed at {topology.chip.bandwidth / 1e9:g} GB/s; it gives examples/s. It is "
            "a lower limit: the compiler counts only one iteration of a loop",
            *_compiler_note(programs),
        ]
    )


def _compiler_note(programs: Sequence["Program"]) -> list[str]:
    if all(program.compiler_estimates for program in programs if program.fits):
        return ["compiler: the compiler's estimate of the time"]
    return ["compiler: the compiler's estimate of the time is unusable: it is not positive"]


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
    """Returns the content of the table and the settings of the programs, as JSON values."""
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


def _workload(config: CompileConfig) -> Workload:
    workload = recipes.read_recipe(
        config.recipe,
        student_config=config.student_config,
        teacher_config=config.teacher_config,
        max_seq_length=config.max_seq_length,
        max_predictions_per_seq=config.max_predictions_per_seq,
    )
    return workload.with_precision(config.compute_dtype, config.recompute_activations)


def _expect_multiple(name: str, size: int, multiple: int, of: str) -> None:
    if size % multiple:
        expected = f"a multiple of {multiple}, {of}, because each gets an equal share"
        raise InputError(Setting(name), expected, size)


def _first_sizes(config: CompileConfig, workload: Workload, topology: "Topology") -> dict[str, int]:
    """Returns the first batch size of each part.

    Raises:
        InputError: a size is not a multiple of the number of chips or of `batch_multiple`.
    """
    step_size = config.per_step_batch_size or workload.config.train_batch_size
    settings = {
        "step": ("per_step_batch_size", step_size),
        "teacher": ("predict_batch_size", config.predict_batch_size),
    }
    chips = f"the number of chips of {topology.name}"
    multiple = config.batch_multiple or topology.num_chips
    _expect_multiple("batch_multiple", multiple, topology.num_chips, chips)
    for part in PARTS[config.part]:
        if config.find_batch:
            _expect_multiple(*settings[part], multiple, "`batch_multiple`")
        _expect_multiple(*settings[part], topology.num_chips, chips)
    return {part: settings[part][1] for part in PARTS[config.part]}


def _compile_parts(
    config: CompileConfig, workload: Workload, topology: "Topology"
) -> list["Program"]:
    """Compiles the programs: one batch size of each part, or several with `find_batch`."""
    from tools.dev.workloads import tpu_compiler

    programs: list[Program] = []
    for part, size in _first_sizes(config, workload, topology).items():
        compile_batch = functools.partial(
            tpu_compiler.compile_part, workload, part, topology=topology
        )
        if not config.find_batch:
            programs.append(compile_batch(size))
            continue
        programs += find_largest(
            compile_batch,
            start=size,
            multiple=config.batch_multiple or topology.num_chips,
            usable_bytes=topology.usable_bytes,
        )
    return programs


def _compile(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, CompileConfig)
    workload = _workload(config)
    if config.json is not None:
        config.json.expect_absent()
    from tools.dev.workloads import tpu_compiler

    topology = tpu_compiler.open_topology(config.topology)
    programs = _compile_parts(config, workload, topology)
    print(table(programs, topology))
    if config.find_batch:
        for part in PARTS[config.part]:
            largest = largest_that_fits([program for program in programs if program.part == part])
            print(f"{part}: the largest batch that fits is {largest or 'none'}")
    if config.json is not None:
        config.json.write_json(to_json(programs, workload, topology))
        print(f"json: {config.json}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(CompileConfig), _compile, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
