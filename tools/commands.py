"""Running commands and other tools from a tool, as one would type it."""

import shlex
import subprocess
import sys


def run_command(command: str, *arguments: str, **settings: object) -> None:
    """Runs a command in a process of its own, after showing how one would type it.

    Args:
        command: `create_pretraining_data`, `create_teacher_output_data` or
            `run_distill`.
        *arguments: flags as one would type them.
        **settings: its flags, by name; None for what it does by itself.

    Raises:
        SystemExit: it failed, and has said why; with its status.
    """
    _run(f"pipeline.{command}", command, [*arguments, *_typed(settings)])


def run_tool(tool: str, **settings: object) -> None:
    """Runs another tool likewise.

    Args:
        tool: the name of its module.
        **settings: its flags, by name.

    Raises:
        SystemExit: it failed, and has said why; with its status.
    """
    _run(f"tools.{tool}", f"offline_distill {tool}", _typed(settings))


def _typed(settings: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


def _run(module: str, shown: str, typed: list[str]) -> None:
    print(f"$ {shown} {shlex.join(typed)}", flush=True)
    status = subprocess.run([sys.executable, "-m", module, *typed], check=False).returncode
    if status:
        raise SystemExit(status)
