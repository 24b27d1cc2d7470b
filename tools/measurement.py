"""Measurements side by side, their targets, and a description of the machine."""

import dataclasses
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Sequence
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
# Instructions that decide how fast a teacher is.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
# Kinds of machines whose ratios differ, by the best instructions that they have.
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
        name: what was measured.
        unit: of both figures.
        ours: the figure here, a median.
        against: what it is compared with; empty where it stands alone.
        baseline: the other's figure, a median; None where there is none.
        ratio: how many times better than the other; the median of the pairs' ratios.
        spread: the smallest and the largest ratio of a pair.
        least_ratio: the target of the ratio, if there is one.
        most: the target of the figure itself, if there is one: no more than that.
        note: what else is to be known of it.
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
        """Whether the targets are met; None where there is none."""
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
    """Calls two measurements in turns, so that whatever else the machine does meets both.

    Example: seconds 2.0 and 2.2 against 4.0 and 4.4 make 2.1 and 4.2, a ratio of 2.

    Args:
        ours: returns a figure.
        baseline: returns the other's.
        repeats: of each.
        **fields: the rest of `Row`; of a rate, of which more is better, the `unit` ends in `/s`.
    """
    pairs = [(ours(), baseline()) for _ in range(repeats)]
    return compare_pairs(pairs, is_rate=fields["unit"].endswith("/s"), **fields)


def compare_pairs(pairs: Sequence[tuple[float, float]], *, is_rate: bool, **fields: Any) -> Row:
    """Compares figures that were measured in turns.

    Args:
        pairs: a figure and the baseline's of the same turn.
        is_rate: whether more is better.
        **fields: the rest of `Row`.
    """
    ratios = [one / other if is_rate else other / one for one, other in pairs]
    return Row(
        ours=statistics.median(one for one, _ in pairs),
        baseline=statistics.median(other for _, other in pairs),
        ratio=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        **fields,
    )


def in_turns(
    calls: Sequence[Callable[[], Any]], repeats: int, *, warm_up: int = 3
) -> list[list[float]]:
    """Times calls one after another, again and again, so that whatever else happens meets all.

    Returns the seconds of each call, run by run. The calls of the warm-up are not timed: they
    compile, and fill caches.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(warm_up + repeats):
        for call, taken in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            if turn >= warm_up:
                taken.append(time.perf_counter() - begun)
    return times


def _proc(path: str, name: str) -> str | None:
    """Returns the first value of a name in a file of `/proc`; None where there is none."""
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


def machine_kind(instructions: Sequence[str]) -> str:
    """Returns the kind of a machine, within which ratios may be compared."""
    kinds = (kind for name, kind in _KINDS.items() if name in instructions)
    return next(kinds, platform.machine())


def describe_machine() -> dict[str, object]:
    """Returns the processor, its kind and instructions, memory, and versions of what computes."""
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
