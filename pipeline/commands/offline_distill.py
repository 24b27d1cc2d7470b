"""Runs a command or a tool by its name: `offline_distill NAME --flags`."""

import ast
import importlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Sequence

from pipeline.base.errors import suggest
from pipeline.commands.running import print_all

_ROOT = pathlib.Path(__file__).parents[2]
# The commands, in the order of their use.
COMMANDS = ("create_pretraining_data", "create_teacher_output_data", "run_distill")
_HELP = ("-h", "-help", "--help")
_VERSION = "--version"
_DISTRIBUTION = "offline-distill"


def find_programs() -> dict[str, pathlib.Path]:
    """Returns the module files of the commands and the tools, keyed by name."""
    commands = {name: _ROOT / "pipeline" / f"{name}.py" for name in COMMANDS}
    tools = {path.stem: path for path in (_ROOT / "tools").glob("*.py")}
    tools |= {path.parent.name: path for path in (_ROOT / "tools").glob("*/__main__.py")}
    runnable = [name for name in sorted(tools) if "\ndef main(" in tools[name].read_text("utf-8")]
    return commands | {name: tools[name] for name in runnable}


def summary(path: pathlib.Path) -> str:
    """Returns the first line of a module's docstring, without importing the module."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _overview() -> str:
    programs = find_programs()
    width = max(map(len, programs))
    lines = ["Usage: offline_distill NAME --flags (offline_distill NAME --help lists them)"]
    lines += [f"       offline_distill {_VERSION}", ""]
    for name, path in programs.items():
        if name not in COMMANDS and COMMANDS[-1] in lines[-1]:
            lines.append("")
        lines.append(f"  {name:{width}}  {summary(path)}")
    return "\n".join(lines)


def _unknown_name_error(name: str) -> str:
    hint = suggest(name, find_programs()) or "offline_distill --help lists all names"
    return f"error: unknown command or tool {name!r}; {hint}"


def _print_version() -> int:
    try:
        version = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        hint = "run pip install . in the clone"
        print(f"error: {_DISTRIBUTION} is not installed; {hint}", file=sys.stderr)
        return 1
    print_all(f"{_DISTRIBUTION} {version}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program that the first argument names, and returns its exit status."""
    arguments = list(sys.argv if argv is None else argv)[1:]
    if not arguments or arguments[0] in _HELP:
        print_all(_overview())
        return 0
    if arguments[0] == _VERSION:
        return _print_version()
    name = arguments[0]
    path = find_programs().get(name)
    if path is None:
        print(_unknown_name_error(name), file=sys.stderr)
        return 1
    module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    program = importlib.import_module(module)
    if argv is not None:
        return program.main([name, *arguments[1:]])
    # `main()` without arguments tells the tool that it owns the process and may restart it.
    sys.argv = [name, *arguments[1:]]
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
