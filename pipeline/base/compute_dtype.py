"""What to compute in where that is left to the machine: `--compute_dtype=auto`."""

import pathlib
from collections.abc import Sequence

FLOAT32 = "float32"
BFLOAT16 = "mixed_bfloat16"
AUTO = "auto"
CHOICES = (FLOAT32, BFLOAT16, AUTO)

# Linux's names of a processor's instructions for products of bfloat16.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def detect(devices: Sequence[str] = (), cpu_info: pathlib.Path = _CPU_INFO) -> tuple[str, str]:
    """Returns bfloat16 where there are instructions for it, else float32; and why.

    A processor without them computes bfloat16 by way of float32, which is slower.

    Args:
        devices: Keras's names, such as `gpu:0`; any but a `cpu` has instructions for bfloat16.
        cpu_info: Linux's description of the processor; elsewhere there is none.

    Returns:
        a dtype policy and the reason, which reads well after it.
    """
    for device in devices:
        if not device.startswith("cpu"):
            return BFLOAT16, f"{device} knows it"
    text = cpu_info.read_text(encoding="utf-8", errors="replace") if cpu_info.is_file() else ""
    known = set(text.split())
    for instruction in _INSTRUCTIONS:
        if instruction in known:
            return BFLOAT16, f"the processor has {instruction}"
    return FLOAT32, f"the processor is not known to have {' or '.join(_INSTRUCTIONS)}"
