"""Tests of `offline_distill NAME` and of `--recipe=NAME`."""

import ast
import importlib.metadata
import re

import pytest

from data_specs import recipes
from pipeline import run_distill
from pipeline.commands import offline_distill, running
from tests.conftest import ROOT


def _main(*arguments: str) -> int:
    return offline_distill.main(["offline_distill", *arguments])


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_offline_distill_without_a_name_lists_commands_and_tools(capsys, arguments) -> None:
    assert _main(*arguments) == 0
    printed = capsys.readouterr().out
    for name in (*offline_distill.COMMANDS, "verify_cache", "merge_caches", "report"):
        assert f"  {name} " in printed


def test_offline_distill_runs_the_named_program(capsys) -> None:
    for name in ("run_distill", "convert_checkpoint"):
        assert _main(name, "--help") == 0
        assert "--output_dir" in capsys.readouterr().out
        assert _main(name, "--no_such_flag=1") == 1
        assert capsys.readouterr().err.startswith("error: ")


def test_error_for_an_unknown_name_suggests_a_similar_one(capsys) -> None:
    assert _main("verify_cashe") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "verify_cache" in lines[0]


def _setup_keywords() -> dict[str, ast.expr]:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (call,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    return {keyword.arg: keyword.value for keyword in call.keywords}


def test_citation_in_the_readme_has_the_version_of_the_package() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    version = ast.literal_eval(_setup_keywords()["version"])
    assert re.findall(r"^  version = \{(.*)\},$", readme, re.MULTILINE) == [version]


def test_version_is_read_from_the_metadata_of_the_package(capsys, monkeypatch) -> None:
    versions = {ast.literal_eval(_setup_keywords()["name"]): "7.8.9"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    assert _main("--version") == 0
    assert capsys.readouterr().out.split() == ["offline-distill", "7.8.9"]


def test_version_of_a_clone_that_is_not_installed_is_an_error(capsys, monkeypatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert _main("--version") == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and "pip install ." in line


def _parse_recipe(*arguments: str):
    values = run_distill.define_flags()
    parsed = []
    status = running.run(values, parsed.append, "", ["x", *arguments], with_recipes=True)
    return status, values


@pytest.mark.parametrize("arguments", [("--recipe=distilbert",), ("--recipe", "distilbert")])
def test_recipe_flag_reads_the_flags_of_the_recipe(arguments) -> None:
    status, values = _parse_recipe(*arguments, "--temperature=4")
    assert status == 0
    assert (values.layer_map, values.drop_segments) == ("0,2,4,7,9,11", True)
    assert values.losses == {"kl_divergence": 5.0, "masked_lm": 2.0, "hidden_cosine": 1.0}
    assert values.temperature == 4.0


def test_recipe_flag_works_in_a_flagfile(tmp_path) -> None:
    path = tmp_path / "own.flags"
    path.write_text("--recipe=roberta_wwm_3layers\n--learning_rate=1e-4\n", encoding="utf-8")
    status, values = _parse_recipe(f"--flagfile={path}")
    assert status == 0
    assert (values.student_layers, values.learning_rate) == (3, 1e-4)


def test_error_for_a_misspelled_recipe_suggests_a_similar_one(capsys) -> None:
    status, _ = _parse_recipe("--recipe=distilbret")
    assert status == 1 and "did you mean distilbert" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--recipe=bert",), ("--recipe",), ("--recipe=",)])
def test_error_for_an_unknown_recipe_lists_the_known_ones(capsys, arguments) -> None:
    status, _ = _parse_recipe(*arguments)
    line = capsys.readouterr().err
    assert status == 1 and line.startswith("error: --recipe: ")
    assert all(name in line for name in recipes.names())
