"""The examples of the documentation, run in an empty folder: `-m docs`.

The examples of the main page come first. Those of each other page need what these made.
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
# Seconds for one block.
_PATIENCE = 1200


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which the commands are those of this tree."""
    folder = pathlib.Path(tmp_path_factory.mktemp("installed"))
    programs = folder / "bin"
    programs.mkdir()
    modules = {name: f"-m pipeline.{name}" for name in offline_distill.COMMANDS}
    modules |= {"offline_distill": "-m pipeline.commands.offline_distill", "python": ""}
    for name, module in modules.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (programs / name).chmod(0o755)
    # As the wheel has it.
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
            timeout=_PATIENCE,
            check=False,
        )
        assert result.returncode == 0, f"{block.place}\n{block.text}\n{result.stdout[-4000:]}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> pathlib.Path:
    """A folder with what the examples of the main page make."""
    folder = pathlib.Path(tmp_path_factory.mktemp("main"))
    _run_examples(MAIN, folder, environment)
    return folder


def test_examples_of_the_main_page_make_a_student(made: pathlib.Path) -> None:
    assert (made / "walk" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "page",
    [page for page in OTHERS if any(block.is_run for block in page.blocks)],
    ids=lambda page: page.name,
)
def test_examples_of_a_page_run(
    page: Page, made: pathlib.Path, tmp_path: pathlib.Path, environment: dict[str, str]
) -> None:
    folder = pathlib.Path(tmp_path) / "work"
    shutil.copytree(made, folder)
    _run_examples(page, folder, environment)
