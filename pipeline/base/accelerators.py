"""Peak compute, memory and bandwidth of accelerators, as their makers state them.

Sources:
    TPU: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. The figures are those of a chip:
        peak compute in bfloat16, HBM capacity and bandwidth.
    GPU: NVIDIA's data sheets of H200, H100, A100, L40S, L4, V100 and T4. The figures are those
        of the Tensor cores without sparsity, in bfloat16. V100 and T4 have no bfloat16; theirs
        are in float16.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """An accelerator chip.

    Attributes:
        name: display name.
        peak_flops: dense 16-bit multiplications and additions per second.
        memory_gb: device memory, in units of 10⁹ bytes.
        bandwidth: memory bandwidth, in bytes per second.
    """

    name: str
    peak_flops: float
    memory_gb: float
    bandwidth: float


# Keyed by the first part of a topology's name, for example `v5e` of `v5e-8`.
TPUS: Mapping[str, Accelerator] = {
    "v4": Accelerator("TPU v4", 275e12, 32, 1200e9),
    "v5e": Accelerator("TPU v5e", 197e12, 16, 819e9),
    "v5p": Accelerator("TPU v5p", 459e12, 95, 2765e9),
    "v6e": Accelerator("TPU v6e", 918e12, 32, 1640e9),
}
# Keys of `TPUS` for each `device_kind` of JAX.
_TPU_KINDS: Mapping[str, str] = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}
# Words of a GPU's `device_kind`. The first entry whose words all occur in it applies.
_GPUS: tuple[tuple[tuple[str, ...], Accelerator], ...] = (
    (("H200",), Accelerator("H200 SXM", 989e12, 141, 4800e9)),
    (("H100", "PCIe"), Accelerator("H100 PCIe", 756e12, 80, 2000e9)),
    (("H100", "NVL"), Accelerator("H100 NVL", 835e12, 94, 3900e9)),
    (("H100",), Accelerator("H100 SXM", 989e12, 80, 3350e9)),
    (("A100", "80GB"), Accelerator("A100 80 GB", 312e12, 80, 2039e9)),
    (("A100",), Accelerator("A100 40 GB", 312e12, 40, 1555e9)),
    (("L40S",), Accelerator("L40S", 362e12, 48, 864e9)),
    (("L4",), Accelerator("L4", 121e12, 24, 300e9)),
    (("V100",), Accelerator("V100", 125e12, 16, 900e9)),
    (("T4",), Accelerator("T4", 65e12, 16, 320e9)),
)


def find_accelerator(device_kind: str) -> Accelerator | None:
    """Returns the chip that JAX or TensorFlow names; None for an unknown chip.

    Args:
        device_kind: for example `TPU v5 lite` or `NVIDIA H100 80GB HBM3`.
    """
    if device_kind in _TPU_KINDS:
        return TPUS[_TPU_KINDS[device_kind]]
    words = device_kind.replace("-", " ").split()
    for required_words, accelerator in _GPUS:
        if all(word in words for word in required_words):
            return accelerator
    return None
