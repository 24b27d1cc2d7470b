"""Generated tables of the README files: `python -m tools.dev.readme_flags [--check]`.

A table stands between `<!-- KIND of NAME -->` and `<!-- end of KIND -->`. Of the kind `flags`
it has a command's flags; of the kind `models`, what opens or what is refused.
"""

import importlib
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.commands import flags
from pipeline.models.families import FAMILIES, REFUSED

_ROOT = pathlib.Path(__file__).parents[2]
README = _ROOT / "pipeline" / "README.md"
MODELS_README = _ROOT / "pipeline" / "models" / "README.md"
_TABLE = re.compile(r"(<!-- (\w+) of (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def _table(titles: str, rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown; `titles` is its first line."""
    lines = [titles, "|" + "---|" * (titles.count("|") - 1)]
    for row in rows:
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join(lines) + "\n"


def flag_table(command: str) -> str:
    """Returns the Markdown table of a command's flags, in the order of their declaration."""
    module = importlib.import_module(f"pipeline.{command}")
    rows = []
    for field in module.FLAGS.fields():
        flag = flags.describe_flag(field)
        # Some defaults depend on the machine; their help says how.
        default = "" if flag.name in module.FLAGS.defaults else flag.default
        rows.append((f"`--{flag.name}`", default, flag.constraint, flag.help))
    return _table("| flag | default | values | |", rows)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def model_table(which: str) -> str:
    """Returns the Markdown table of the model families that are `opened`, or `refused`."""
    if which == "refused":
        rows = (
            (f"`{name}`", f"{reason[0].upper()}{reason[1:]}.") for name, reason in REFUSED.items()
        )
        return _table("| `model_type` | reason |", rows)
    rows = (
        (
            family.title,
            f"`{family.model_type}`",
            _code(models.names),
            _code(models.weights),
            _code(models.tokenizer),
            models.note,
        )
        for family in FAMILIES.values()
        for models in family.published
    )
    return _table("| family | `model_type` | models | weights | tokenizer | |", rows)


_MAKERS: Mapping[str, Callable[[str], str]] = {"flags": flag_table, "models": model_table}


def with_tables(text: str) -> str:
    """Returns a README's text with each of its tables as it is now."""
    return _TABLE.sub(lambda match: match[1] + _MAKERS[match[2]](match[3]) + match[4], text)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the tables, or with `--check` says whether they are up to date."""
    is_check = list(sys.argv if argv is None else argv)[1:] == ["--check"]
    for page in (README, MODELS_README):
        text = page.read_text(encoding="utf-8")
        updated = with_tables(text)
        if not is_check:
            page.write_text(updated, encoding="utf-8")
        elif text != updated:
            print(f"error: {page}: run python -m tools.dev.readme_flags", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
