"""The formats by name: what each needs, and how well it must agree. Imports nothing heavy."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence

from pipeline.base.errors import InputError, Setting

HF = "hf"
SAVED_MODEL = "saved_model"
LITERT = "litert"
LITERT_INT8 = "litert_int8"
ONNX = "onnx"


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        packages: what it needs: the names to install by those to import.
        least_agreement: share of first guesses that must be the model's own. In float32
            only ties of two guesses may break differently; 8 bits move logits a little.
    """

    packages: Mapping[str, str]
    least_agreement: float


_LITERT_PACKAGES = {"ai_edge_litert": "ai-edge-litert"}
_ONNX_PACKAGES = {"onnx": "onnx", "onnxruntime": "onnxruntime", "tf2onnx": "tf2onnx"}
FORMATS: Mapping[str, Format] = {
    HF: Format({}, 0.999),
    SAVED_MODEL: Format({}, 0.999),
    LITERT: Format(_LITERT_PACKAGES, 0.999),
    LITERT_INT8: Format(_LITERT_PACKAGES, 0.9),
    ONNX: Format(_ONNX_PACKAGES, 0.999),
}


def parse_formats(text: str) -> tuple[str, ...]:
    """Reads `--formats`, and checks that what they need is installed.

    Raises:
        InputError: an unknown format, one that is there twice, or a missing package.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) < len(names) or not FORMATS.keys() >= set(names):
        raise InputError(Setting("formats"), f"some of {','.join(FORMATS)}, each once", f"{text!r}")
    missing = missing_packages(names)
    if missing:
        raise InputError(
            Setting("formats"),
            f"{', '.join(missing)} to be installed for {text}",
            "no such package",
            hint="pip install '.[export]'",
        )
    return names


def missing_packages(names: Sequence[str]) -> list[str]:
    """Returns the packages, as one installs them, that formats need and that are not there."""
    needed = {module: name for one in names for module, name in FORMATS[one].packages.items()}
    return [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
