"""Tables of the commands' flags in a README: `python -m tools.dev.readme_flags [--check]`.

A table stands between `<!-- flags of NAME -->` and `<!-- end of flags -->`.
"""

import importlib
import pathlib
import re
import sys
from collections.abc import Sequence

from pipeline.commands import flags

README = pathlib.Path(__file__).parents[2] / "pipeline" / "README.md"
_TABLE = re.compile(r"(<!-- flags of (\w+) -->\n).*?(<!-- end of flags -->)", re.DOTALL)


def flag_table(command: str) -> str:
    """Returns the Markdown table of a command's flags, in the order of their declaration."""
    module = importlib.import_module(f"pipeline.{command}")
    lines = ["| flag | default | values | |", "|---|---|---|---|"]
    for field in module.FLAGS.fields():
        flag = flags.describe_flag(field)
        # Some defaults depend on the machine; their help says how.
        default = "" if flag.name in module.FLAGS.defaults else flag.default
        cells = (f"`--{flag.name}`", default, flag.constraint, flag.help)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """Returns a README's text with each of its tables as the flags are now."""
    return _TABLE.sub(lambda match: match[1] + flag_table(match[2]) + match[3], text)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the tables, or with `--check` says whether they are up to date."""
    arguments = list(sys.argv if argv is None else argv)[1:]
    text = README.read_text(encoding="utf-8")
    updated = with_tables(text)
    if arguments != ["--check"]:
        README.write_text(updated, encoding="utf-8")
    elif text != updated:
        print(f"error: {README}: run python -m tools.dev.readme_flags", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
