"""What a benchmark ran on."""

import importlib.metadata
import platform

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


def describe() -> dict[str, object]:
    """Returns the processor, its instructions, memory, and versions of what computes."""
    flags = (_proc("/proc/cpuinfo", "flags") or "").split()
    memory = _proc("/proc/meminfo", "MemTotal")
    return {
        "processor": _proc("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": local.num_cpus(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }
