"""The formats by name and the settings of a model card. Imports nothing heavy."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_words, setting


@dataclasses.dataclass(frozen=True)
class CardSettings(Settings):
    """The settings of a model card."""

    name: str | None = setting(None, "Name of the model in its card; that of its directory.")
    language: str | None = setting(None, "Languages for the card, for example zh or ru,en.")
    license: str | None = setting(None, "License for the card, for example apache-2.0.")
    base_model: str | None = setting(
        None, "Teacher's name on a model hub, for the card. The teacher's id where it is known."
    )
    scores: tuple[Location, ...] = setting(
        (), "JSON files of numbers by name, separated by commas, for the card.", parse=parse_words
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
    """One format.

    Attributes:
        packages: what it needs: the names to install by those to import.
        least_agreement: share of first guesses that must be the model's own. In float32
            only ties of two guesses may break differently; 8 bits move logits a little.
        gives_vectors: whether it gives a vector of each text, all of which must be the model's.
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
    """Checks the names of formats, and that what they need is installed.

    Raises:
        InputError: an unknown format, one that is there twice, or a missing package.
    """
    if not names or len(set(names)) < len(names) or not FORMATS.keys() >= set(names):
        expected = f"some of {','.join(FORMATS)}, each once"
        raise InputError(Setting("formats"), expected, ",".join(names) or "none")
    missing = missing_packages(names)
    if missing:
        expected, hint = f"{', '.join(missing)} to be installed for", "pip install '.[export]'"
        names = ",".join(names)
        raise InputError(Setting("formats"), f"{expected} {names}", "no such package", hint)


def missing_packages(names: Sequence[str]) -> list[str]:
    """Returns the packages, as one installs them, that formats need and that are not there."""
    needed = {module: name for one in names for module, name in FORMATS[one].packages.items()}
    return [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
