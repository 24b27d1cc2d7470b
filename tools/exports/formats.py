"""Export formats by name, and the settings of a model card; imports no large package."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_words, setting


@dataclasses.dataclass(frozen=True)
class CardSettings(Settings):
    """The settings of a model card."""

    name: str | None = setting(
        None, "Name of the model in its card. By default, the name of its directory."
    )
    language: str | None = setting(None, "Languages for the card, for example zh or ru,en.")
    license: str | None = setting(None, "License for the card, for example apache-2.0.")
    base_model: str | None = setting(
        None,
        "Name of the teacher on a model hub, for the card. By default, the teacher's id if it is "
        "known.",
    )
    scores: tuple[Location, ...] = setting(
        (),
        "JSON files with scores for the card (numbers by name), separated by commas.",
        parse=parse_words,
    )


HF = "hf"
SENTENCE_TRANSFORMERS = "sentence_transformers"
SAVED_MODEL = "saved_model"
SAVED_MODEL_TEXT = "saved_model_text"
LITERT = "litert"
LITERT_INT8 = "litert_int8"
ONNX = "onnx"


@dataclasses.dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        packages: packages that it requires: names for pip by names for import.
        least_agreement: fraction of top predictions that must agree with the model. In float32,
            only ties may be broken differently; 8-bit weights change logits slightly.
        gives_vectors: whether it gives a vector for each text. All vectors must agree with the
            model's.
    """

    packages: Mapping[str, str]
    least_agreement: float
    gives_vectors: bool = False


_LITERT_PACKAGES = {"ai_edge_litert": "ai-edge-litert"}
_ONNX_PACKAGES = {"onnx": "onnx", "onnxruntime": "onnxruntime", "tf2onnx": "tf2onnx"}
FORMATS: Mapping[str, Format] = {
    HF: Format({}, 0.999),
    SENTENCE_TRANSFORMERS: Format({}, 1.0, gives_vectors=True),
    SAVED_MODEL: Format({}, 0.999),
    SAVED_MODEL_TEXT: Format({"tensorflow_text": "tensorflow-text"}, 0.999),
    LITERT: Format(_LITERT_PACKAGES, 0.999),
    LITERT_INT8: Format(_LITERT_PACKAGES, 0.9),
    ONNX: Format(_ONNX_PACKAGES, 0.999),
}


def check(names: Sequence[str]) -> None:
    """Checks names of formats, and that the packages that they require are installed.

    Raises:
        InputError: a format is unknown or occurs twice, or a package is missing.
    """
    if not names or len(set(names)) < len(names) or not FORMATS.keys() >= set(names):
        expected = f"some of {','.join(FORMATS)}, each once"
        raise InputError(Setting("formats"), expected, ",".join(names) or "none")
    missing = missing_packages(names)
    if missing:
        received = f"{','.join(names)} requires {', '.join(missing)}, which is not installed"
        raise InputError(Setting("formats"), received=received, hint="pip install '.[export]'")


def missing_packages(names: Sequence[str]) -> list[str]:
    """Returns the names for pip of packages that formats require and that are not installed."""
    packages = {
        module: package for name in names for module, package in FORMATS[name].packages.items()
    }
    return [
        package for module, package in packages.items() if importlib.util.find_spec(module) is None
    ]
