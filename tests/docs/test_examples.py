"""Runs the examples of the documentation in an empty folder (`-m docs`).

The examples of the main page run first, and those of the other pages use their output.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from pipeline.base.local_mirror import CACHE_VARIABLE
from pipeline.commands import offline_distill
from tests.conftest import ROOT
from tests.docs.markdown import Page, read_page
from tools.dev import generated_tables

MAIN, *OTHERS = map(read_page, generated_tables.pages())
pytestmark = pytest.mark.docs
# The time limit of one block in seconds.
_BLOCK_TIMEOUT = 1200


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables that make the commands run from this source tree."""
    folder = pathlib.Path(tmp_path_factory.mktemp("installed"))
    programs = folder / "bin"
    programs.mkdir()
    modules = {name: f"-m pipeline.{name}" for name in offline_distill.COMMANDS}
    modules |= {"offline_distill": "-m pipeline.commands.offline_distill", "python": ""}
    for name, module in modules.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (programs / name).chmod(0o755)
    # The wheel installs the API under this name.
    (folder / "packages").mkdir()
    (folder / "packages" / "offline_distill").symlink_to(ROOT / "pipeline" / "api")
    return {
        "PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder / 'packages'}",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        CACHE_VARIABLE: str(folder / "mirror"),
    }


def _run_examples(page: Page, folder: pathlib.Path, environment: dict[str, str]) -> None:
    for block in page.blocks:
        is_possible = all(map(importlib.util.find_spec, block.modules))
        if not (block.is_run and is_possible):
            continue
        program = ["bash", "-euo", "pipefail", "-c"]
        if block.language == "python":
            program = ["python", "-c"]
        result = subprocess.run(
            [*program, block.text],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_BLOCK_TIMEOUT,
            check=False,
        )
        assert result.returncode == 0, f"{block.location}\n{block.text}\n{result.stdout[-4000:]}"


@pytest.fixture(scope="module")
def main_folder(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> pathlib.Path:
    """A folder with the output of the main page's examples."""
    folder = pathlib.Path(tmp_path_factory.mktemp("main"))
    _run_examples(MAIN, folder, environment)
    return folder


def test_examples_of_the_main_page_train_a_student(main_folder: pathlib.Path) -> None:
    assert (main_folder / "walk" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "page",
    [page for page in OTHERS if any(block.is_run for block in page.blocks)],
    ids=lambda page: page.name,
)
def test_examples_of_a_page_run(
    page: Page, main_folder: pathlib.Path, tmp_path: pathlib.Path, environment: dict[str, str]
) -> None:
    folder = pathlib.Path(tmp_path) / "work"
    shutil.copytree(main_folder, folder)
    _run_examples(page, folder, environment)
