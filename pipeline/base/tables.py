"""Lazy loading of extension points. A table's entry names a module and an object in it."""

import importlib
from typing import Any


def load_entry(package: str, entry: str) -> Any:
    """Returns the object that an entry of a package's table names.

    Args:
        package: name of the package that contains the table.
        entry: `"module:object"`: a module of the package, and an object in the module.
    """
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(f"{package}.{module}"), name)
