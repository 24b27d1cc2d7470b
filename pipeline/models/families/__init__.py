"""The model families: one module each, which declares `FAMILY`."""

import importlib
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.models.families.base import Family

_MODULES = (
    "bert",
    "roberta",
    "xlm_roberta",
    "distilbert",
    "albert",
    "modernbert",
    "camembert",
    "ernie",
    "electra",
    "mpnet",
)
FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (importlib.import_module(f"{__name__}.{name}").FAMILY for name in _MODULES)
}

_DEBERTA = (
    "its published files have no masked-LM head that `transformers` loads, and version 3 was "
    "trained with replaced token detection, without such a head"
)
# Families that a user may expect to open, and the reasons why they are refused.
REFUSED: Mapping[str, str] = {"deberta": _DEBERTA, "deberta-v2": _DEBERTA}


def find_family(model_type: Any) -> Family:
    """Returns the family that a `config.json` names.

    Raises:
        InputError: the family is unknown or refused.
    """
    # A file may have a list as its value, which is not hashable.
    if model_type not in tuple(FAMILIES):
        reason = REFUSED.get(model_type) if isinstance(model_type, str) else None
        expected = f"one of {', '.join(FAMILIES)}"
        raise InputError("model_type", expected, format_value(model_type), reason)
    return FAMILIES[model_type]
