"""Running one of the three commands from a tool, as one would type it."""

import subprocess
import sys


def run_command(command: str, **settings: object) -> None:
    """Runs a command in a process of its own, after showing how one would type it.

    Args:
        command: `create_pretraining_data`, `create_teacher_output_data` or
            `run_distill`.
        **settings: its flags.

    Raises:
        SystemExit: it failed, and has said why; with its status.
    """
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    print(f"$ {command} {' '.join(arguments)}", flush=True)
    status = subprocess.run(
        [sys.executable, "-m", f"pipeline.{command}", *arguments], check=False
    ).returncode
    if status:
        raise SystemExit(status)
