"""The model families: one module each, which declares `FAMILY`."""

import importlib
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
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


def find_family(model_type: Any) -> Family:
    """Returns the family that a `config.json` names.

    Raises:
        InputError: it is not known here.
    """
    # A file may have a list there, which cannot be looked up.
    if model_type not in tuple(FAMILIES):
        raise InputError("model_type", f"one of {', '.join(FAMILIES)}", shown(model_type))
    return FAMILIES[model_type]
