"""Times a training step and the teacher's forward pass on the device at hand.

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from pipeline.base import accelerators
from pipeline.base.compute_dtype import BFLOAT16, CHOICES, FLOAT32
from pipeline.base.errors import naming_setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.commands.settings import BackendSettings
from pipeline.distill.settings import DistillConfig, StudentConfig, parse_losses
from tools.dev.workloads import recipes, step_programs
from tools.dev.workloads.step_programs import PARTS, Workload
from tools.text_table import aligned_lines


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    model: str = setting("bert-base", f"A config.json or one of {', '.join(recipes.SHAPES)}.")
    batch_size: int = setting(32, "Examples in a batch.", low=1)
    max_seq_length: int = setting(512, "Length of the inputs in tokens.", low=1)
    max_predictions_per_seq: int = setting(20, "Masked positions of each input.", low=1)
    truncation_factor: int = setting(128, "k, the cached tokens at a masked position.", low=1)
    losses: Mapping[str, float] = setting(
        {"soft_cross_entropy": 1.0, "probability_cosine": 1.0},
        "As of run_distill, of those that a cache supports.",
        parse=parse_losses,
    )
    part: str = setting("both", "Program to run.", choices=tuple(PARTS))
    steps: int = setting(20, "Batches that are timed.", low=1)
    compute_dtype: str = setting(
        FLOAT32,
        "Precision of student and teacher. auto is mixed_bfloat16 where the hardware supports it, "
        "else float32.",
        choices=CHOICES,
    )
    recompute_activations: bool = setting(False, "As of run_distill.")
    json: Location | None = setting(None, "New JSON file for the table.")


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speed of a part: seconds of a batch (median, fastest and slowest) and operations.

    Attributes:
        example_flops: operations that the model needs for an example.
        peak_share: share of the device's peak; None where that is not known.
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

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and the rates."""
        rates = {name: getattr(self, name) for name in ("examples_per_second", "flops_per_second")}
        return dataclasses.asdict(self) | rates


def _step(workload: Workload) -> Callable[[], None]:
    """Returns what makes one step of training and waits for it."""
    import keras

    batch = step_programs.step_batch(workload, workload.config.train_batch_size)
    distiller = step_programs.build_distiller(workload, workload.config.train_batch_size)
    if keras.config.backend() != "jax":
        import tensorflow as tf

        compiled = tf.function(distiller.train_step)
        return lambda: (compiled(batch), tf.test.experimental.sync_devices())
    import jax

    step = jax.jit(distiller.train_step, donate_argnums=0)
    state = step_programs.train_state(distiller)

    def run() -> None:
        nonlocal state
        _, state = step(state, batch)
        jax.block_until_ready(state)

    return run


def _teacher(workload: Workload) -> Callable[[], None]:
    """Returns what computes one batch of stage 1b, and has the result as NumPy arrays."""
    from pipeline.teacher.forward import compile_forward

    batch = step_programs.teacher_batch(workload, workload.config.train_batch_size)
    keep = functools.partial(step_programs.keep_topk, workload)
    forward = compile_forward(step_programs.build_teacher(workload), keep)
    return lambda: forward(batch)


# By part: what makes the function that computes one batch.
PROGRAMS: Mapping[str, Callable[[Workload], Callable[[], None]]] = {
    "step": _step,
    "teacher": _teacher,
}
_FLOPS = {"step": step_programs.step_flops, "teacher": step_programs.teacher_flops}


def measure(
    workload: Workload,
    part: str,
    run: Callable[[], None],
    *,
    steps: int,
    peak_flops: float | None,
) -> Speed:
    """Times so many batches of a part, which `run` computes, after a few that are not timed."""
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


def _workload(config: BenchmarkConfig) -> Workload:
    with naming_setting("model"):
        shape = recipes.find_shape(config.model)
    workload = Workload(
        DistillConfig(
            student=StudentConfig(student=config.model),
            losses=config.losses,
            output_dir=".",
            train_batch_size=config.batch_size,
        ),
        shape,
        shape,
        config.max_seq_length,
        config.max_predictions_per_seq,
        config.truncation_factor,
    )
    recipes.expect_models_fit(workload)
    return workload


def _benchmark(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, BenchmarkConfig)
    workload = _workload(config)
    if config.json is not None:
        config.json.expect_absent()
    devices = running.choose_backend(values)
    dtype = running.choose_compute_dtype(values, devices)
    workload = workload.computing(dtype, config.recompute_activations)
    kind = device_kind()
    peak, note = find_peak(kind, dtype)
    speeds = [
        measure(workload, part, PROGRAMS[part](workload), steps=config.steps, peak_flops=peak)
        for part in PARTS[config.part]
    ]
    print(table(speeds, workload, note))
    if config.json is not None:
        names = ("model", "max_seq_length", "max_predictions_per_seq", "steps")
        report = {"device": kind, "backend": values.backend, "compute_dtype": dtype}
        report |= {name: getattr(config, name) for name in names}
        config.json.write_json({**report, "parts": [speed.to_json() for speed in speeds]})
        print(f"json: {config.json}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(
        flags.define_flags(BenchmarkConfig, BackendSettings), _benchmark, __doc__, argv
    )


if __name__ == "__main__":
    sys.exit(main())
