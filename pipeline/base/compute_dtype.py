"""Detection of the dtype to compute in, for `--compute_dtype=auto`."""

import pathlib
from collections.abc import Sequence

FLOAT32 = "float32"
BFLOAT16 = "mixed_bfloat16"
AUTO = "auto"
CHOICES = (FLOAT32, BFLOAT16, AUTO)

# Linux's names for processor instructions that multiply bfloat16.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def detect(devices: Sequence[str] = (), cpu_info: pathlib.Path = _CPU_INFO) -> tuple[str, str]:
    """Returns a dtype policy and the reason for it: bfloat16 if the hardware supports it.

    A processor without bfloat16 instructions emulates them in float32, which is slower.

    Args:
        devices: Keras's device names, for example `gpu:0`. Every device except `cpu` supports
            bfloat16.
        cpu_info: Linux's description of the processor. It does not exist on other systems.
    """
    for device in devices:
        if not device.startswith("cpu"):
            return BFLOAT16, f"{device} supports it"
    text = cpu_info.read_text(encoding="utf-8", errors="replace") if cpu_info.is_file() else ""
    cpu_flags = set(text.split())
    for instruction in _INSTRUCTIONS:
        if instruction in cpu_flags:
            return BFLOAT16, f"the processor has {instruction}"
    return FLOAT32, f"the processor is not known to have {' or '.join(_INSTRUCTIONS)}"
