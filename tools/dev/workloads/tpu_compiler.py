"""Ahead-of-time compilation for TPUs on a machine without TPUs.

XLA's TPU compiler is part of the package `libtpu` and runs on any machine. A program is compiled
for all chips of a topology with data parallelism: the batch is divided among the chips, and each
chip has all weights.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.base.accelerators import TPUS, Accelerator
from pipeline.base.errors import InputError, Setting
from tools.dev.workloads import step_programs
from tools.dev.workloads.step_programs import Workload

GIB = 2**30
# Usable memory of a chip, from the compiler's message about a program that does not fit.
USABLE_GIB = {"v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
_PROGRESS_SECONDS = 30.0
# The compiler's two messages about the memory that a program needs.
_NEEDED = re.compile(
    r"Used ([0-9.]+[KMGT]) of [0-9.]+[KMGT] hbm"
    r"|memory required for HLO temporaries \(([0-9.]+[KMGT])\) exceeds"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips for which programs are compiled; `usable_bytes` is the usable memory of one chip."""

    name: str
    chip: Accelerator
    usable_bytes: float
    devices: Any

    @property
    def num_chips(self) -> int:
        """Number of chips."""
        return len(self.devices)


@dataclasses.dataclass(frozen=True)
class Program:
    """The result of compiling a program.

    If the program does not fit, `argument_bytes` and all later attributes are None.

    Attributes:
        part: `step` or `teacher`.
        batch_size: number of examples on all chips together.
        num_chips: number of chips that share them.
        compile_seconds: time of the compilation.
        fits: whether the program fits into the memory of each chip.
        memory_bytes: memory that it needs on a chip; None if the compiler does not report it.
        argument_bytes: memory of weights, optimizer state and batch on a chip.
        temporary_bytes: memory of temporary values on a chip.
        flops: floating-point operations on a chip: the compiler's count, or the count of
            `pipeline.models.flops` if that is larger. The compiler counts only one iteration of a
            loop, and blocks of positions are computed in a loop.
        bytes_accessed: bytes accessed on a chip, as the compiler counts them. Of a loop, they
            include only one iteration.
        compiler_seconds: the compiler's estimate of the time; it may be meaningless.
    """

    part: str
    batch_size: int
    num_chips: int
    compile_seconds: float
    fits: bool
    memory_bytes: float | None
    argument_bytes: float | None = None
    temporary_bytes: float | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    compiler_seconds: float | None = None

    def roofline_seconds(self, chip: Accelerator) -> float | None:
        """Returns the shortest time that the chip's peaks allow; None if it is not known.

        It is the larger of operations / peak compute and bytes / peak bandwidth (Williams,
        Waterman and Patterson, "Roofline", 2009).
        """
        if self.flops is None or self.bytes_accessed is None:
            return None
        return max(self.flops / chip.peak_flops, self.bytes_accessed / chip.bandwidth)

    @property
    def memory_gib(self) -> str:
        """Memory that it needs on a chip, in GiB, as text."""
        return "more" if self.memory_bytes is None else f"{self.memory_bytes / GIB:.2f}"

    @property
    def compiler_estimates(self) -> bool:
        """Whether the compiler's estimate of the time is a positive number."""
        seconds = self.compiler_seconds
        return seconds is not None and math.isfinite(seconds) and seconds > 0


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """Returns the chip and the layout in the name of a topology.

    Example: `v5e:2x4` gives v5e and (2, 4), which are eight chips.

    Raises:
        InputError: the name is malformed, or the chip is not supported.
    """
    kind, _, shape = name.partition(":")
    if kind not in USABLE_GIB or not re.fullmatch(r"[1-9][0-9]?(x[1-9][0-9]?){1,2}", shape):
        raise InputError(
            Setting("topology"),
            f"one of {', '.join(USABLE_GIB)} and a layout of chips, such as v5e:2x2 or v5p:2x2x1",
            f"{name!r}",
        )
    return kind, tuple(int(size) for size in shape.split("x"))


def open_topology(name: str) -> Topology:
    """Returns a topology. After this call, Keras uses JAX on the CPU.

    Raises:
        InputError: the compiler or JAX is not installed, or the compiler does not know the
            topology.
    """
    kind, layout = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            Setting("topology"),
            received="the TPU compiler is not installed",
            hint="pip install libtpu",
        )
    os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    # No TPU is opened, so several processes may compile at the same time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Otherwise libtpu queries the metadata server of Google Cloud, and waits for an answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{kind}-{math.prod(layout)}")
    try:
        from jax.experimental import topologies
    except ImportError as error:
        raise InputError(
            Setting("topology"),
            received=f"JAX cannot be imported ({error})",
            hint="pip install '.[jax]'",
        ) from error
    # By default, a host has at least four chips.
    bounds = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(layout) == 1 else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds)
    except Exception as error:
        raise InputError(
            Setting("topology"),
            received=f"the TPU compiler does not support {name}: {str(error).splitlines()[0]}",
        ) from error
    return Topology(name, TPUS[kind], USABLE_GIB[kind] * GIB, description.devices)


def compile_part(workload: Workload, part: str, batch_size: int, topology: Topology) -> Program:
    """Compiles a program and describes it; `batch_size` must be a multiple of the chips."""
    lowered = _PARTS[part](workload, batch_size, topology)
    start = time.perf_counter()
    title = f"{part}, {batch_size} examples, {topology.name}"
    with _progress(title):
        try:
            compiled, error = lowered.compile(), None
        except Exception as caught:
            compiled, error = None, caught
    seconds = time.perf_counter() - start
    make = functools.partial(Program, part, batch_size, topology.num_chips, seconds)
    if error is None:
        required_flops = step_programs.FLOPS[part](workload) * batch_size / topology.num_chips
        program = _describe(make, compiled, required_flops)
    else:
        program = make(fits=False, memory_bytes=needed_bytes(error))
    result = "fits" if program.fits else "does not fit"
    print(f"compiled: {title}: {result}, {program.memory_gib} GiB", file=sys.stderr, flush=True)
    return program


def _describe(make: Callable[..., Program], compiled: Any, required_flops: float) -> Program:
    """Returns a compiled program with the compiler's figures."""
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    # Outputs that alias arguments need no additional memory.
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    others = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return make(
        fits=True,
        memory_bytes=memory.argument_size_in_bytes + new_outputs + others,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=max(costs.get("flops", 0.0), required_flops),
        bytes_accessed=costs.get("bytes accessed"),
        compiler_seconds=costs.get("optimal_seconds"),
    )


def needed_bytes(error: Exception) -> float | None:
    """Returns the memory that a program needs, from the compiler's error that it does not fit.

    Returns None if the error has no size. An error that is not about memory is raised again.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    match = _NEEDED.search(text)
    if match is None:
        return None
    size = match[1] or match[2]
    return float(size[:-1]) * _UNITS[size[-1]]


@contextlib.contextmanager
def _progress(title: str) -> Iterator[None]:
    """Prints to stderr that a program is being compiled, and again every half minute."""
    start, done = time.perf_counter(), threading.Event()

    def report() -> None:
        print(f"compiling: {title}", file=sys.stderr, flush=True)
        while not done.wait(_PROGRESS_SECONDS):
            seconds = time.perf_counter() - start
            print(f"compiling: {title}: {seconds:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _shardings(topology: Topology) -> tuple[Any, Any]:
    """Returns the shardings of weights and of batches over the chips."""
    import jax
    import numpy as np

    mesh = jax.sharding.Mesh(np.array(topology.devices), ("batch",))
    spec = jax.sharding.PartitionSpec
    return (
        jax.sharding.NamedSharding(mesh, spec()),
        jax.sharding.NamedSharding(mesh, spec("batch")),
    )


def _abstract(values: Any, sharding: Any, batch_size: int | None = None) -> Any:
    """Returns the shapes and dtypes of values, with another batch size if one is given."""
    import jax

    def describe(value: Any) -> Any:
        shape = value.shape if batch_size is None else (batch_size, *value.shape[1:])
        return jax.ShapeDtypeStruct(shape, value.dtype, sharding=sharding)

    return jax.tree.map(describe, values)


def _lower_step(workload: Workload, batch_size: int, topology: Topology) -> Any:
    """Lowers a training step as Keras's `fit` would run it on these chips."""
    import jax

    whole, divided = _shardings(topology)
    distiller = step_programs.build_distiller(workload, batch_size // topology.num_chips)
    state = step_programs.train_state(distiller)
    batch = _abstract(step_programs.step_batch(workload, 1), divided, batch_size)
    step = jax.jit(distiller.train_step, donate_argnums=0, out_shardings=(None, whole))
    return step.lower(_abstract(state, whole), batch)


def _lower_teacher(workload: Workload, batch_size: int, topology: Topology) -> Any:
    """Lowers the teacher's forward pass, and the truncation of its outputs in capture."""
    import jax

    from pipeline.teacher import forward

    model = step_programs.build_teacher(workload)
    select = functools.partial(step_programs.select_topk, workload)
    run, whole, divided = forward.divided_forward(model, select, topology.devices)
    values = _abstract([variable.value for variable in model.variables], whole)
    batch = _abstract(step_programs.teacher_batch(workload, 1), divided, batch_size)
    return jax.jit(run).lower(values, batch)


_PARTS = {"step": _lower_step, "teacher": _lower_teacher}
