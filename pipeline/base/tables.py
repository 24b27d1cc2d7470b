"""Tables of extension points: one line names the module and the object of an entry."""

import importlib
from typing import Any


def load_entry(package: str, entry: str) -> Any:
    """Returns the object that an entry of a package's table names.

    Args:
        package: name of the package that holds the table.
        entry: `"module:object"`, a module of the package and an object in it.
    """
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(f"{package}.{module}"), name)
