"""How fast a step of stage 2 and the teacher's forward pass of stage 1b run here.

python -m tools.dev.benchmark_step --backend=jax --model=bert-base --compute_dtype=mixed_bfloat16

Weights and batches are random, so that nothing else is needed; batches come from NumPy,
and go to the device within the time that is measured. The student has the model's shape
and reads a cache's top-k; so has the teacher. One device computes. Operations are the
model's, not the hardware's: see `workloads/step_programs.py` for the formula.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from pipeline.base.compute_dtype import BFLOAT16
from pipeline.base.errors import naming_setting
from pipeline.base.location import Location
from pipeline.commands import running
from pipeline.distill.settings import DistillConfig, StudentConfig, parse_losses
from tools.dev.flag_table import FlagTable
from tools.dev.workloads import accelerators, recipes, step_programs
from tools.dev.workloads.step_programs import Workload
from tools.text_table import aligned_lines

_PARTS = {"step": ("step",), "teacher": ("teacher",), "both": ("step", "teacher")}
_LOSSES = "soft_cross_entropy=1,probability_cosine=1"


@dataclasses.dataclass(frozen=True)
class Speed:
    """What was measured of one part.

    Attributes:
        part: `step` or `teacher`.
        batch_size: examples.
        seconds: of a batch, the median.
        fastest: of all batches.
        slowest: of all batches.
        example_flops: what the model needs for an example.
        peak_share: of the device's peak; None where that is not known.
    """

    part: str
    batch_size: int
    seconds: float
    fastest: float
    slowest: float
    example_flops: float
    peak_share: float | None

    @property
    def examples_per_second(self) -> float:
        """By the median."""
        return self.batch_size / self.seconds

    @property
    def flops_per_second(self) -> float:
        """What the model needed, over the median."""
        return self.example_flops * self.examples_per_second


def _step(workload: Workload) -> Callable[[], None]:
    """Returns what makes one step of training and waits for it."""
    import keras

    batch = step_programs.step_batch(workload, workload.config.train_batch_size)
    distiller = step_programs.build_distiller(workload)
    if keras.config.backend() == "jax":
        return _jax_step(distiller, batch)
    return _tensorflow_step(distiller, batch)


def _jax_step(distiller: Any, batch: Any) -> Callable[[], None]:
    import jax

    step = jax.jit(distiller.train_step, donate_argnums=0)
    variables = step_programs.train_variables(distiller)
    state = tuple([variable.value for variable in some] for some in variables)

    def run() -> None:
        nonlocal state
        _, state = step(state, batch)
        jax.block_until_ready(state)

    return run


def _tensorflow_step(distiller: Any, batch: Any) -> Callable[[], None]:
    import tensorflow as tf

    step = tf.function(distiller.train_step)

    def run() -> None:
        step(batch)
        tf.test.experimental.sync_devices()

    return run


def _teacher(workload: Workload) -> Callable[[], None]:
    """Returns what computes one batch of stage 1b, and has the result as NumPy arrays."""
    from pipeline.teacher.forward import compile_forward

    batch = step_programs.teacher_batch(workload, workload.config.train_batch_size)
    keep = functools.partial(step_programs.keep_topk, workload)
    forward = compile_forward(step_programs.build_teacher(workload), keep)
    return lambda: forward(batch)


_PROGRAMS = {"step": _step, "teacher": _teacher}
_FLOPS = {"step": step_programs.step_flops, "teacher": step_programs.teacher_flops}


def measure(workload: Workload, part: str, *, steps: int, peak_flops: float | None) -> Speed:
    """Runs one part.

    Args:
        workload: what is computed; `config.train_batch_size` examples at once.
        part: `step` or `teacher`.
        steps: batches that are timed, after a few that are not.
        peak_flops: of the device; None where that is not known.
    """
    run = _PROGRAMS[part](workload)
    # The first compiles, the next ones settle caches and clocks.
    for _ in range(3):
        run()
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    size, seconds = workload.config.train_batch_size, statistics.median(times)
    flops = _FLOPS[part](workload)
    share = None if peak_flops is None else flops * size / seconds / peak_flops
    return Speed(part, size, seconds, min(times), max(times), flops, share)


def device_kind() -> str:
    """Returns what the backend calls the device that computes."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(device).get("device_name", "GPU")
    return "cpu"


def find_peak(kind: str, compute_dtype: str) -> tuple[float | None, str]:
    """Returns the device's peak, if it is known, and a line that says which, or why none.

    Args:
        kind: as `device_kind` returns it.
        compute_dtype: a dtype policy; peaks are of 16 bits.
    """
    accelerator = accelerators.find_accelerator(kind)
    if accelerator is None:
        return None, f"share of peak: left out, as no peak of {kind!r} is known here"
    if compute_dtype != BFLOAT16:
        return None, f"share of peak: left out, as peaks are those of {BFLOAT16}"
    peak = accelerator.peak_flops
    return peak, f"share of peak: of {peak / 1e12:g} TFLOP/s, {accelerator.name}, dense, 16 bits"


def table(speeds: Sequence[Speed], workload: Workload, note: str) -> str:
    """Returns the table as text."""
    titles = ["part", "batch", "median", "fastest", "slowest", "examples/s", "TFLOP/s", "of peak"]
    rows = [
        [
            one.part,
            str(one.batch_size),
            *(f"{value * 1e3:.4g} ms" for value in (one.seconds, one.fastest, one.slowest)),
            f"{one.examples_per_second:.4g}",
            f"{one.flops_per_second / 1e12:.3g}",
            "" if one.peak_share is None else f"{one.peak_share:.1%}",
        ]
        for one in speeds
    ]
    lengths = f"{workload.max_seq_length} tokens, {workload.max_predictions_per_seq} masked"
    return "\n".join(
        [*aligned_lines(titles, rows), "", f"{lengths}, {workload.config.compute_dtype}", note]
    )


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = FlagTable()
    shapes = ", ".join(recipes.SHAPES)
    table.string("model", "bert-base", f"One of {shapes}, or a config.json.")
    table.integer("batch_size", 32, "Examples in a batch.", low=1)
    table.integer("max_seq_length", 512, "The length of the inputs.", low=1)
    table.integer("max_predictions_per_seq", 20, "Masked positions of each.", low=1)
    table.integer("truncation_factor", 128, "k, the cached tokens at a masked position.", low=1)
    table.string("losses", _LOSSES, "As of run_distill, of those that a cache supports.")
    table.choice("part", "both", "What to run.", of=list(_PARTS))
    table.integer("steps", 20, "Batches that are timed.", low=1)
    table.compute_dtype("What student and teacher compute in.")
    table.boolean("recompute_activations", False, "As of run_distill.")
    table.string("json", None, "A new JSON file for what the table says.")
    table.backend()
    return table.values


def _workload(values: flags.FlagValues) -> Workload:
    with naming_setting("model"):
        shape = recipes.find_shape(values.model)
    with naming_setting("losses"):
        losses = parse_losses(values.losses)
    config = DistillConfig(
        student=StudentConfig(student=values.model),
        losses=losses,
        output_dir=".",
        train_batch_size=values.batch_size,
        recompute_activations=values.recompute_activations,
    )
    workload = Workload(
        config,
        shape,
        shape,
        values.max_seq_length,
        values.max_predictions_per_seq,
        values.truncation_factor,
    )
    recipes.expect_models_fit(workload)
    return workload


def _benchmark(values: flags.FlagValues) -> None:
    workload = _workload(values)
    if values.json:
        Location.parse(values.json, "json").expect_absent()
    devices = running.choose_backend(values)
    dtype = running.choose_compute_dtype(values, devices)
    config = dataclasses.replace(workload.config, compute_dtype=dtype)
    workload = dataclasses.replace(workload, config=config)
    kind = device_kind()
    peak, note = find_peak(kind, dtype)
    speeds = [
        measure(workload, part, steps=values.steps, peak_flops=peak) for part in _PARTS[values.part]
    ]
    print(table(speeds, workload, note))
    if values.json:
        described = [
            dataclasses.asdict(one)
            | {
                "examples_per_second": one.examples_per_second,
                "flops_per_second": one.flops_per_second,
            }
            for one in speeds
        ]
        settings = {"device": kind, "backend": values.backend, "compute_dtype": dtype}
        lengths = {
            name: values[name].value
            for name in ("model", "max_seq_length", "max_predictions_per_seq", "steps")
        }
        Location.parse(values.json, "json").write_json({**settings, **lengths, "parts": described})
        print(f"json: {values.json}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _benchmark, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
