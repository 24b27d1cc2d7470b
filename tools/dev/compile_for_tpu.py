"""Compiles a recipe for a TPU, without a TPU: memory, operations, and whether it fits.

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

# How much larger the next batch may be, and how often the line may leave more than half
# of the interval before it is trusted no more.
_MOST_GROWTH = 4
_TRIES_BY_LINE = 2


@dataclasses.dataclass(frozen=True)
class CompileConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    topology: str = setting("v5e:2x2", "TPU generation and layout of the chips.")
    recipe: str = setting(
        next(iter(recipes.RECIPES)), "A name in data_specs/recipes.", choices=tuple(recipes.RECIPES)
    )
    student_config: str | None = setting(
        None,
        f"Instead of the recipe's student: a config.json or one of {', '.join(recipes.SHAPES)}.",
    )
    teacher_config: str | None = setting(None, "Instead of the recipe's teacher: the same.")
    max_seq_length: int = setting(512, "Length of the inputs in tokens.", low=1)
    max_predictions_per_seq: int | None = setting(
        None, "Masked positions of each input; those of the recipe by default.", low=1
    )
    compute_dtype: str = setting(
        BFLOAT16, "Precision of student and teacher.", choices=(FLOAT32, BFLOAT16)
    )
    recompute_activations: bool = setting(False, "As of run_distill.")
    part: str = setting("both", "Program to compile.", choices=tuple(PARTS))
    per_step_batch_size: int | None = setting(
        None,
        "Examples of a step on all chips; the recipe's `train_batch_size` by default.",
        low=1,
    )
    # The default is that of create_teacher_output_data.
    predict_batch_size: int = setting(64, "Examples of the teacher's batch on all chips.", low=1)
    find_batch: bool = setting(
        False, "Find the largest batch that fits; begins with the given one."
    )
    batch_multiple: int | None = setting(
        None,
        "With `find_batch`: number that batches are multiples of; the chips by default.",
        low=1,
    )
    json: Location | None = setting(None, "New JSON file for the table.")


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


def _workload(config: CompileConfig) -> Workload:
    workload = recipes.read_recipe(
        config.recipe,
        student_config=config.student_config,
        teacher_config=config.teacher_config,
        max_seq_length=config.max_seq_length,
        max_predictions_per_seq=config.max_predictions_per_seq,
    )
    return workload.computing(config.compute_dtype, config.recompute_activations)


def _expect_multiple(name: str, size: int, multiple: int, of: str) -> None:
    if size % multiple:
        raise InputError(
            Setting(name), f"a multiple of {multiple}, {of}, as each gets an equal share", size
        )


def _first_sizes(config: CompileConfig, workload: Workload, topology: "Topology") -> dict[str, int]:
    """Returns the first batch of each part, after checking that chips share it equally."""
    step_size = config.per_step_batch_size or workload.config.train_batch_size
    found = {
        "step": ("per_step_batch_size", step_size),
        "teacher": ("predict_batch_size", config.predict_batch_size),
    }
    chips = f"the chips of {topology.name}"
    multiple = config.batch_multiple or topology.num_chips
    _expect_multiple("batch_multiple", multiple, topology.num_chips, chips)
    for part in PARTS[config.part]:
        if config.find_batch:
            _expect_multiple(*found[part], multiple, "`batch_multiple`")
        _expect_multiple(*found[part], topology.num_chips, chips)
    return {part: found[part][1] for part in PARTS[config.part]}


def _compile_parts(
    config: CompileConfig, workload: Workload, topology: "Topology"
) -> list["Program"]:
    """Compiles what was asked for, or batch after batch of it."""
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
            found = largest_that_fits([one for one in programs if one.part == part])
            print(f"{part}: the largest batch that fits is {found or 'none'}")
    if config.json is not None:
        config.json.write_json(to_json(programs, workload, topology))
        print(f"json: {config.json}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(CompileConfig), _compile, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
