"""Comparative measurements, their targets, and a description of the machine."""

import dataclasses
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.runners import local

_PACKAGES = (
    "tensorflow",
    "keras",
    "jax",
    "numpy",
    "tokenizers",
    "rjieba",
    "jieba",
    "torch",
    "transformers",
    "ai-edge-litert",
    "onnxruntime",
)
# Processor instructions that decide the speed of a teacher.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
# Machine kinds, between which ratios differ, by their best instructions.
_KINDS = {
    "amx_bf16": "AMX-BF16",
    "avx512_bf16": "AVX-512-BF16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "bf16": "Arm with BF16",
    "asimd": "Arm",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: the quantity that was measured.
        unit: the unit of both figures.
        ours: the median figure of this project.
        against: the name of the baseline; empty without one.
        baseline: the median figure of the baseline; None without one.
        ratio: factor by which `ours` is better than the baseline, the median over pairs.
        spread: the smallest and the largest ratio of a pair.
        least_ratio: the minimum of the ratio; None without a target.
        most: the maximum of `ours`; None without a target.
        note: an explanation.
    """

    name: str
    unit: str
    ours: float
    against: str = ""
    baseline: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    least_ratio: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether all targets are met; None without targets."""
        checks = []
        if self.least_ratio is not None:
            checks.append(self.ratio is not None and self.ratio >= self.least_ratio)
        if self.most is not None:
            checks.append(self.ours <= self.most)
        return all(checks) if checks else None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, and whether the targets are met."""
        return {**dataclasses.asdict(self), "met": self.met}


def compare(
    ours: Callable[[], float], baseline: Callable[[], float], repeats: int, **fields: Any
) -> Row:
    """Calls two measurements alternately, so that other load on the machine affects both.

    Example: 2.0 and 2.2 seconds against 4.0 and 4.4 seconds give the medians 2.1 and 4.2, and
    a ratio of 2.

    Args:
        ours: returns a figure of this project.
        baseline: returns a figure of the baseline.
        repeats: number of calls of each.
        **fields: the other fields of `Row`. A `unit` that ends in `/s` marks a rate, of which
            larger values are better.
    """
    pairs = [(ours(), baseline()) for _ in range(repeats)]
    return compare_pairs(pairs, is_rate=fields["unit"].endswith("/s"), **fields)


def compare_pairs(pairs: Sequence[tuple[float, float]], *, is_rate: bool, **fields: Any) -> Row:
    """Compares figures that were measured alternately.

    Args:
        pairs: for each round, the figure of this project and that of the baseline.
        is_rate: whether larger values are better.
        **fields: the other fields of `Row`.
    """
    ratios = [ours / baseline if is_rate else baseline / ours for ours, baseline in pairs]
    return Row(
        ours=statistics.median(ours for ours, _ in pairs),
        baseline=statistics.median(baseline for _, baseline in pairs),
        ratio=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        **fields,
    )


def time_alternately(
    calls: Sequence[Callable[[], Any]], repeats: int, *, warm_up: int = 3
) -> list[list[float]]:
    """Times calls alternately, so that other load on the machine affects all of them.

    Returns the seconds of all timed runs of each call. Warm-up runs compile and fill caches,
    and are not timed.
    """
    times: list[list[float]] = [[] for _ in calls]
    for round_index in range(warm_up + repeats):
        for call, call_times in zip(calls, times, strict=True):
            start_time = time.perf_counter()
            call()
            if round_index >= warm_up:
                call_times.append(time.perf_counter() - start_time)
    return times


def _proc(path: str, name: str) -> str | None:
    """Returns the first value of a name in a file of `/proc`; None if it has none."""
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine_line(machine: Mapping[str, Any]) -> str:
    """Returns the processor, the cores and the main packages of `describe_machine` as text."""
    names = (name for name in ("keras", "tensorflow") if name in machine["packages"])
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in names)
    return f"{machine['processor']}, {machine['cores']} cores; {versions}"


def machine_kind(instructions: Sequence[str]) -> str:
    """Returns the kind of a machine; ratios are comparable within a kind."""
    kinds = (kind for name, kind in _KINDS.items() if name in instructions)
    return next(kinds, platform.machine())


def describe_machine() -> dict[str, object]:
    """Returns the processor, its kind and instructions, the memory and the package versions."""
    flags = (_proc("/proc/cpuinfo", "flags") or _proc("/proc/cpuinfo", "Features") or "").split()
    instructions = [name for name in _INSTRUCTIONS if name in flags]
    memory = _proc("/proc/meminfo", "MemTotal")
    return {
        "processor": _proc("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": local.num_cpus(),
        "kind": machine_kind(instructions),
        "instructions": instructions,
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }
