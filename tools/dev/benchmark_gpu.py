"""Measures forward pass, training step, capture and distillation on one device.

python -m tools.dev.benchmark_gpu --json=gpu.json

Each program is compared with two programs written in JAX without Keras. One computes the whole
attention map. The other uses JAX's fused attention, without dropout of attention probabilities.
Weights and records are random. The tool requires JAX, Keras and a few small packages, but not
TensorFlow. No measurement starts after `--minutes`. `--tiny` uses small models, to try the tool on
a CPU.
"""

import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from pipeline.base.compute_dtype import BFLOAT16
from pipeline.base.location import LocalLocation, Location
from pipeline.base.settings import Settings, setting
from pipeline.commands import flags, running
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.models.config import EncoderConfig
from tools.dev import benchmark_step
from tools.dev.benchmark_step import Speed
from tools.dev.workloads import recipes, step_programs
from tools.dev.workloads.step_programs import Workload
from tools.text_table import aligned_lines

_KERAS, _PLAIN, _FUSED = "Keras", "JAX", "JAX, fused attention"
_LOSSES = {"soft_cross_entropy": 1.0, "probability_cosine": 1.0}


@dataclasses.dataclass(frozen=True)
class GpuConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    minutes: float = setting(8.0, "Minutes after which no measurement starts.", low=0.0)
    steps: int = setting(20, "Number of batches of each program that are timed.", low=1)
    tiny: bool = setting(False, "Whether to use tiny models in float32.")
    json: Location | None = setting(None, "New JSON file for the table.")


@dataclasses.dataclass(frozen=True)
class Case:
    """The shape of a model and of its batches."""

    model: str
    shape: EncoderConfig
    length: int
    batch_size: int

    def workload(self, dtype: str) -> Workload:
        """Returns a workload with a student and teacher of this shape and a top-128 cache."""
        config = DistillConfig(
            student=StudentConfig(student=self.model),
            losses=_LOSSES,
            output_dir=".",
            train_batch_size=self.batch_size,
        )
        masked = max(1, self.length // 25)
        workload = Workload(config, self.shape, self.shape, self.length, masked)
        return workload.with_precision(dtype, recompute_activations=False)


def _cases(tiny: bool) -> list[Case]:
    """Returns the cases, the most informative first."""
    if tiny:
        shape = dataclasses.replace(
            recipes.SHAPES["minirbt"],
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=300,
        )
        return [Case("tiny", shape, 64, 4)]
    sizes = [("bert-base", 512, 64), ("bert-base", 128, 256)]
    sizes += [("bert-large", 512, 32), ("bert-large", 128, 128)]
    return [Case(name, recipes.SHAPES[name], length, size) for name, length, size in sizes]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        case: the model and its batches.
        program: name of the program, with its attention.
        speed: its speed.
        compile_seconds: seconds from its construction until its first batch is done.
    """

    case: Case
    program: str
    speed: Speed
    compile_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        values = {"model": self.case.model, "max_seq_length": self.case.length}
        values |= {"program": self.program, "compile_seconds": self.compile_seconds}
        return values | self.speed.to_json()


def _plain_teacher(workload: Workload, *, fused: bool) -> Callable[[], None]:
    """Returns a function that computes a batch of capture, written in JAX without Keras."""
    import jax

    logits = _plain_logits(workload, fused=fused)
    weights = _plain_weights(workload)
    batch = step_programs.teacher_batch(workload, workload.config.train_batch_size)

    @jax.jit
    def forward(weights: Any, batch: Any) -> Any:
        outputs = {"logits": logits(weights, batch, logits_dtype="float32")}
        return step_programs.select_topk(workload, outputs, batch)

    return lambda: jax.device_get(forward(weights, batch))


def _plain_step(workload: Workload, *, fused: bool) -> Callable[[], None]:
    """Returns a function that makes a training step, written in JAX without Keras."""
    import jax
    import jax.numpy as jnp

    from tools.dev.workloads import plain_jax

    logits = _plain_logits(workload, fused=fused)
    batch = step_programs.step_batch(workload, workload.config.train_batch_size)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, inputs: Any, targets: Any) -> Any:
        weights, moments, count = state
        key = jax.random.fold_in(jax.random.key(0), count)

        def loss(weights: Any) -> Any:
            student = logits(weights, inputs, logits_dtype=_product_dtype(workload), key=key)
            return plain_jax.cached_losses(student, targets)

        weights, moments = plain_jax.adamw(weights, jax.grad(loss)(weights), moments, count)
        return weights, moments, count + 1

    weights = _plain_weights(workload)
    moments = tuple(jax.tree.map(jnp.zeros_like, weights) for _ in range(2))
    state = weights, moments, jnp.zeros((), jnp.int32)

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, *batch))

    return run


def _product_dtype(workload: Workload) -> str:
    return "bfloat16" if workload.config.compute_dtype == BFLOAT16 else "float32"


def _plain_logits(workload: Workload, *, fused: bool) -> Callable[..., Any]:
    from tools.dev.workloads import plain_jax

    attention = plain_jax.fused_attention if fused else plain_jax.plain_attention
    dtype = _product_dtype(workload)
    return functools.partial(plain_jax.logits, workload.student, attention=attention, dtype=dtype)


def _plain_weights(workload: Workload) -> Any:
    """Returns weights for the programs that are written in JAX without Keras."""
    from tools.dev.workloads import plain_jax

    return plain_jax.random_weights(workload.student, seed=0)


_PLAIN_PROGRAMS = {"teacher": _plain_teacher, "step": _plain_step}


def _programs(workload: Workload, part: str) -> Mapping[str, Callable[[], Callable[[], None]]]:
    """Returns functions that make the programs of a part, by program."""
    plain = functools.partial(_PLAIN_PROGRAMS[part], workload)
    return {
        _KERAS: functools.partial(benchmark_step.PROGRAMS[part], workload),
        _PLAIN: functools.partial(plain, fused=False),
        _FUSED: functools.partial(plain, fused=True),
    }


def _program_rows(
    case: Case, dtype: str, *, steps: int, peak: float | None, is_late: Callable[[], bool]
) -> Iterator[Row]:
    workload = case.workload(dtype)
    for part in ("teacher", "step"):
        for program, make in _programs(workload, part).items():
            if is_late():
                return
            start = time.perf_counter()
            run = make()
            run()
            compile_seconds = time.perf_counter() - start
            speed = benchmark_step.measure(workload, part, run, steps=steps, peak_flops=peak)
            yield Row(case, program, speed, compile_seconds)


def _stage_rates(case: Case, dtype: str, num_batches: int) -> dict[str, float]:
    """Returns the examples per second of capture and distillation, from records on a disk."""
    import jax

    from tools.dev.workloads.record_stages import RecordStages

    workload = case.workload(dtype)
    with tempfile.TemporaryDirectory() as folder:
        stages = RecordStages(workload, case.batch_size, num_batches, LocalLocation(folder))
        rates = {"capture": stages.num_examples / stages.capture(stages.masked_records())}
        distiller = step_programs.build_distiller(workload, case.batch_size)
        step = jax.jit(distiller.train_step, donate_argnums=0)
        state = step_programs.train_state(distiller)
        _, state = step(state, step_programs.step_batch(workload, case.batch_size))
        jax.block_until_ready(state)
        start = time.perf_counter()
        for batch in stages.batches():
            _, state = step(state, batch)
        jax.block_until_ready(state)
        rates["distill"] = stages.num_examples / (time.perf_counter() - start)
    return rates


def table(rows: Sequence[Row]) -> str:
    """Returns the programs' speeds as text."""
    titles = ["model", "tokens", "part", "program", "batch", "median", "examples/s", "TFLOP/s"]
    cells = [
        [
            row.case.model,
            str(row.case.length),
            row.speed.part,
            row.program,
            str(row.speed.batch_size),
            f"{row.speed.seconds * 1e3:.4g} ms",
            f"{row.speed.examples_per_second:.4g}",
            f"{row.speed.flops_per_second / 1e12:.3g}",
            "" if row.speed.peak_share is None else f"{row.speed.peak_share:.1%}",
            f"{row.compile_seconds:.1f} s",
        ]
        for row in rows
    ]
    return "\n".join(aligned_lines([*titles, "of peak", "first batch"], cells))


def _benchmark(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, GpuConfig)
    if config.json is not None:
        config.json.expect_absent()
    end = time.monotonic() + 60.0 * config.minutes
    os.environ["KERAS_BACKEND"] = "jax"
    running.print_devices("jax")
    kind, dtype = benchmark_step.device_kind(), "float32" if config.tiny else BFLOAT16
    peak, note = benchmark_step.find_peak(kind, dtype)
    cases, rates, rows = _cases(config.tiny), {}, []

    def is_late() -> bool:
        return time.monotonic() > end

    # The stages run after the first case, so that slow programs do not take all the time.
    for case in cases:
        for row in _program_rows(case, dtype, steps=config.steps, peak=peak, is_late=is_late):
            rows.append(row)
            print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
        if not rates and not is_late():
            rates = _stage_rates(case, dtype, num_batches=2 if config.tiny else 32)
    print(f"{table(rows)}\n\n{dtype} on {kind}; {note}")
    for name, rate in rates.items():
        print(f"{name}, from records: {rate:.4g} examples/s")
    if config.json is not None:
        report = {"device": kind, "compute_dtype": dtype, "examples_per_second": rates}
        config.json.write_json({**report, "programs": [row.to_json() for row in rows]})
        print(f"json: {config.json}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(GpuConfig), _benchmark, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
