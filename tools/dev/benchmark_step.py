"""Measures the time of a training step and of the teacher's forward pass on one device.

python -m tools.dev.benchmark_step --backend=jax --model=bert-base --compute_dtype=mixed_bfloat16

Weights and batches are random, so no files are needed. The time includes the transfer of batches
from NumPy arrays to the device. Student and teacher both have the shape of `--model`, and the
student reads the top-k of a cache. Operations are those that the model requires, not those that
the hardware executes; `workloads/step_programs.py` has the formula.
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
    batch_size: int = setting(32, "Number of examples in a batch.", low=1)
    max_seq_length: int = setting(512, "Length of the inputs in tokens.", low=1)
    max_predictions_per_seq: int = setting(20, "Number of masked positions of each input.", low=1)
    truncation_factor: int = setting(
        128, "Number of cached tokens at a masked position (k).", low=1
    )
    losses: Mapping[str, float] = setting(
        {"soft_cross_entropy": 1.0, "probability_cosine": 1.0},
        "Losses as for run_distill; only those that a cache supports.",
        parse=parse_losses,
    )
    part: str = setting("both", "Program to run.", choices=tuple(PARTS))
    steps: int = setting(20, "Number of batches that are timed.", low=1)
    compute_dtype: str = setting(
        FLOAT32,
        "Precision of student and teacher. auto means mixed_bfloat16 if the hardware supports it, "
        "otherwise float32.",
        choices=CHOICES,
    )
    recompute_activations: bool = setting(
        False, "Whether to recompute activations, as for run_distill."
    )
    json: Location | None = setting(None, "New JSON file for the table.")


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speed of a part.

    Attributes:
        part: `step` or `teacher`.
        batch_size: number of examples in a batch.
        seconds: median time of a batch.
        fastest: shortest time of a batch, in seconds.
        slowest: longest time of a batch, in seconds.
        example_flops: operations that the model requires for an example.
        peak_share: fraction of the device's peak; None if the peak is not known.
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
        """Examples per second, by the median time."""
        return self.batch_size / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Operations of the model per second, by the median time."""
        return self.example_flops * self.examples_per_second

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and the rates."""
        rates = {name: getattr(self, name) for name in ("examples_per_second", "flops_per_second")}
        return dataclasses.asdict(self) | rates


def _step(workload: Workload) -> Callable[[], None]:
    """Returns a function that makes one training step and waits for it."""
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
    """Returns a function that computes one batch of capture, with NumPy arrays as the result."""
    from pipeline.teacher.forward import compile_forward

    batch = step_programs.teacher_batch(workload, workload.config.train_batch_size)
    select = functools.partial(step_programs.select_topk, workload)
    forward = compile_forward(step_programs.build_teacher(workload), select)
    return lambda: forward(batch)


# For each value of `part`, a factory of the function that computes one batch.
PROGRAMS: Mapping[str, Callable[[Workload], Callable[[], None]]] = {
    "step": _step,
    "teacher": _teacher,
}


def measure(
    workload: Workload,
    part: str,
    run: Callable[[], None],
    *,
    steps: int,
    peak_flops: float | None,
) -> Speed:
    """Returns the speed of a part.

    Args:
        workload: the workload.
        part: `step` or `teacher`.
        run: computes one batch of the part.
        steps: number of batches that are timed.
        peak_flops: the device's peak in operations per second, if it is known.
    """
    # The first batch includes compilation; the next two let caches and clock rates settle.
    for _ in range(3):
        run()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    size, seconds = workload.config.train_batch_size, statistics.median(times)
    flops = step_programs.FLOPS[part](workload)
    share = None if peak_flops is None else flops * size / seconds / peak_flops
    return Speed(part, size, seconds, min(times), max(times), flops, share)


def device_kind() -> str:
    """Returns the backend's name of the device."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        return jax.devices()[0].device_kind
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(device).get("device_name", "GPU")
    return "cpu"


def find_peak(kind: str, compute_dtype: str) -> tuple[float | None, str]:
    """Returns the device's peak, if it is known, and a note on it.

    Args:
        kind: name of the device, as `device_kind` returns it.
        compute_dtype: a dtype policy; peaks are known only for 16 bits.
    """
    accelerator = accelerators.find_accelerator(kind)
    if accelerator is None:
        return None, f"share of peak: left out, because the peak of {kind!r} is not known"
    if compute_dtype != BFLOAT16:
        return None, f"share of peak: left out, because peaks are known only for {BFLOAT16}"
    peak = accelerator.peak_flops
    return peak, f"share of peak: of {peak / 1e12:g} TFLOP/s, {accelerator.name}, dense, 16 bits"


def table(speeds: Sequence[Speed], workload: Workload, note: str) -> str:
    """Returns the table as text."""
    titles = ["part", "batch", "median", "fastest", "slowest", "examples/s", "TFLOP/s", "of peak"]
    rows = [
        [
            speed.part,
            str(speed.batch_size),
            *(f"{value * 1e3:.4g} ms" for value in (speed.seconds, speed.fastest, speed.slowest)),
            f"{speed.examples_per_second:.4g}",
            f"{speed.flops_per_second / 1e12:.3g}",
            "" if speed.peak_share is None else f"{speed.peak_share:.1%}",
        ]
        for speed in speeds
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
    workload = workload.with_precision(dtype, config.recompute_activations)
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
