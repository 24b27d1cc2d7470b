"""Published recipes: flagfiles of `run_distill`, one for each recipe, in `recipes/`."""

import pathlib

FOLDER = pathlib.Path(__file__).with_name("recipes")


def names() -> tuple[str, ...]:
    """Returns the names of the recipes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.flags")))


def find(name: str) -> pathlib.Path:
    """Returns the flagfile of a recipe.

    Raises:
        ValueError: there is no such recipe. The message lists the known ones.
    """
    if name not in names():
        raise ValueError(f"expected one of {', '.join(names())}, received {name!r}")
    return FOLDER / f"{name}.flags"
