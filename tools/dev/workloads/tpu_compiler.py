"""Compiling ahead of time for TPUs that are not there.

XLA's TPU compiler comes with the package `libtpu` and runs on any machine. A program is
compiled for all chips of a topology: the batch is divided among them, and each holds all
weights (data parallelism).
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
# What the compiler may use of a chip's memory, in its own words when a program does not fit.
USABLE_GIB = {"v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
_PROGRESS_SECONDS = 30.0
# Its two ways to say what a program needs.
_NEEDED = re.compile(
    r"Used ([0-9.]+[KMGT]) of [0-9.]+[KMGT] hbm"
    r"|memory required for HLO temporaries \(([0-9.]+[KMGT])\) exceeds"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that programs are compiled for; `usable_bytes` are those of one chip's memory."""

    name: str
    chip: Accelerator
    usable_bytes: float
    devices: Any

    @property
    def num_chips(self) -> int:
        """How many there are."""
        return len(self.devices)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program as it was compiled, or was not.

    Attributes:
        part: `step` or `teacher`.
        batch_size: examples, of all chips together.
        num_chips: that share them.
        compile_seconds: how long the compiler took.
        fits: whether it fits into each chip's memory.
        memory_bytes: what it needs on a chip; None where the compiler does not say.
        argument_bytes: of that, weights, the optimizer's state and the batch; None,
            like all that follows, where it does not fit.
        temporary_bytes: of that, what lives during the program only.
        flops: floating-point operations on a chip, as the compiler counts them.
        bytes_accessed: on a chip, as the compiler counts them.
        compiler_seconds: its own estimate of the time; it may mean nothing.
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
        """Returns the least time that the chip's peaks allow, None where nothing is known.

        The larger of operations over peak compute and bytes over peak bandwidth
        (Williams, Waterman and Patterson, "Roofline", 2009).
        """
        if self.flops is None or self.bytes_accessed is None:
            return None
        return max(self.flops / chip.peak_flops, self.bytes_accessed / chip.bandwidth)

    @property
    def memory_gib(self) -> str:
        """What it needs on a chip, for people."""
        return "more" if self.memory_bytes is None else f"{self.memory_bytes / GIB:.2f}"

    @property
    def compiler_estimates(self) -> bool:
        """Whether the compiler's estimate is a time at all."""
        seconds = self.compiler_seconds
        return seconds is not None and math.isfinite(seconds) and seconds > 0


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """Reads a topology's name.

    Example: `v5e:2x4` is v5e and (2, 4), eight chips.

    Raises:
        InputError: it is no such name, or of a chip that is not known here.
    """
    kind, _, shape = name.partition(":")
    if kind not in USABLE_GIB or not re.fullmatch(r"[1-9][0-9]?(x[1-9][0-9]?){1,2}", shape):
        raise InputError(
            Setting("topology"),
            f"{', '.join(USABLE_GIB)} and the chips' layout, such as v5e:2x2 or v5p:2x2x1",
            f"{name!r}",
        )
    return kind, tuple(int(size) for size in shape.split("x"))


def open_topology(name: str) -> Topology:
    """Returns a topology; Keras computes on the CPU with JAX from then on.

    Raises:
        InputError: the compiler or JAX is not installed, or it knows no such topology.
    """
    kind, layout = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            Setting("topology"),
            "the TPU compiler to be installed",
            "none",
            hint="pip install libtpu brings it",
        )
    os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    # No TPU is opened: several processes may compile at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Else it asks for the description of a machine in Google's cloud, and waits.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{kind}-{math.prod(layout)}")
    try:
        from jax.experimental import topologies
    except ImportError as error:
        raise InputError(
            Setting("topology"),
            received=f"JAX cannot be imported ({error})",
            hint="pip install '.[jax]' brings it",
        ) from error
    # One chip has no neighbours; four are the least otherwise.
    bounds = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(layout) == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds)
    except Exception as error:
        raise InputError(
            Setting("topology"),
            received=f"the TPU compiler knows no {name}: {str(error).splitlines()[0]}",
        ) from error
    return Topology(name, TPUS[kind], USABLE_GIB[kind] * GIB, found.devices)


def compile_part(workload: Workload, part: str, batch_size: int, topology: Topology) -> Program:
    """Compiles a program for a batch that is a multiple of the chips, and describes it."""
    lowered = _PARTS[part](workload, batch_size, topology)
    begun = time.perf_counter()
    what = f"{part}, {batch_size} examples, {topology.name}"
    with _progress(what):
        try:
            compiled, error = lowered.compile(), None
        except Exception as caught:
            compiled, error = None, caught
    seconds = time.perf_counter() - begun
    make = functools.partial(Program, part, batch_size, topology.num_chips, seconds)
    if error is None:
        program = _describe(make, compiled)
    else:
        program = make(fits=False, memory_bytes=needed_bytes(error))
    said = "fits" if program.fits else "does not fit"
    print(f"compiled: {what}: {said}, {program.memory_gib} GiB", file=sys.stderr, flush=True)
    return program


def _describe(make: Callable[..., Program], compiled: Any) -> Program:
    """Returns a program that was compiled, with what the compiler says of it."""
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    # What comes out lies where it came in, but for what is new.
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    rest = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return make(
        fits=True,
        memory_bytes=memory.argument_size_in_bytes + new + rest,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=costs.get("flops"),
        bytes_accessed=costs.get("bytes accessed"),
        compiler_seconds=costs.get("optimal_seconds"),
    )


def needed_bytes(error: Exception) -> float | None:
    """Returns the memory that a program needs, from the compiler's error that it does not fit.

    Returns None where the compiler does not say, and raises an error that is not about memory.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    match = _NEEDED.search(text)
    if match is None:
        return None
    said = match[1] or match[2]
    return float(said[:-1]) * _UNITS[said[-1]]


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Says on stderr what is being compiled, and again each half minute."""
    begun, done = time.perf_counter(), threading.Event()

    def say() -> None:
        print(f"compiling: {what}", file=sys.stderr, flush=True)
        while not done.wait(_PROGRESS_SECONDS):
            seconds = time.perf_counter() - begun
            print(f"compiling: {what}: {seconds:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _shardings(topology: Topology) -> tuple[Any, Any]:
    """Returns how weights lie on the chips, and how batches do."""
    import jax
    import numpy as np

    mesh = jax.sharding.Mesh(np.array(topology.devices), ("batch",))
    spec = jax.sharding.PartitionSpec
    return (
        jax.sharding.NamedSharding(mesh, spec()),
        jax.sharding.NamedSharding(mesh, spec("batch")),
    )


def _abstract(values: Any, sharding: Any, batch_size: int | None = None) -> Any:
    """Returns shapes and dtypes alone, with another batch size if one is given."""
    import jax

    def describe(value: Any) -> Any:
        shape = value.shape if batch_size is None else (batch_size, *value.shape[1:])
        return jax.ShapeDtypeStruct(shape, value.dtype, sharding=sharding)

    return jax.tree.map(describe, values)


def _lower_step(workload: Workload, batch_size: int, topology: Topology) -> Any:
    """Lowers a step as Keras's `fit` would run it over these chips."""
    import jax

    whole, divided = _shardings(topology)
    distiller = step_programs.build_distiller(workload, batch_size // topology.num_chips)
    state = step_programs.train_state(distiller)
    batch = _abstract(step_programs.step_batch(workload, 1), divided, batch_size)
    step = jax.jit(distiller.train_step, donate_argnums=0, out_shardings=(None, whole))
    return step.lower(_abstract(state, whole), batch)


def _lower_teacher(workload: Workload, batch_size: int, topology: Topology) -> Any:
    """Lowers the teacher's forward pass and what stage 1b keeps of it."""
    import jax

    from pipeline.teacher import forward

    model = step_programs.build_teacher(workload)
    keep = functools.partial(step_programs.keep_topk, workload)
    run, whole, divided = forward.divided_forward(model, keep, topology.devices)
    values = _abstract([variable.value for variable in model.variables], whole)
    batch = _abstract(step_programs.teacher_batch(workload, 1), divided, batch_size)
    return jax.jit(run).lower(values, batch)


_PARTS = {"step": _lower_step, "teacher": _lower_teacher}
