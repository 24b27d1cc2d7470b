"""Running one of the three commands from a tool, as one would type it."""

import shlex
import subprocess
import sys


def run_command(command: str, *arguments: str, **settings: object) -> None:
    """Runs a command in a process of its own, after showing how one would type it.

    Args:
        command: `create_pretraining_data`, `create_teacher_output_data` or
            `run_distill`.
        *arguments: flags as one would type them.
        **settings: its flags, by name.

    Raises:
        SystemExit: it failed, and has said why; with its status.
    """
    typed = [*arguments, *(f"--{name}={value}" for name, value in settings.items())]
    print(f"$ {command} {shlex.join(typed)}", flush=True)
    status = subprocess.run(
        [sys.executable, "-m", f"pipeline.{command}", *typed], check=False
    ).returncode
    if status:
        raise SystemExit(status)
