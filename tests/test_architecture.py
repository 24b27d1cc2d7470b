"""Rules for the source code; the rules of imports are in `.importlinter`."""

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

import pytest

from data_specs import records
from tests.conftest import ROOT, run_python

LIBRARY = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("data_specs/*.py")])
SOURCES = [*LIBRARY, *sorted(ROOT.glob("tools/**/*.py"))]
# Only these modules of models/ and distill/ need TensorFlow.
NEEDS_TENSORFLOW = {
    "pipeline.models.formats.tf1_checkpoint",
    "pipeline.distill.batches",
    "pipeline.distill.training",
}


def _module_name(path: pathlib.Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _nodes(paths: list[pathlib.Path], *kinds: type) -> Iterator[tuple[str, ast.AST]]:
    """Yields the nodes of some types with their module and line."""
    for path in paths:
        for node in ast.walk(_tree(path)):
            if isinstance(node, kinds):
                yield f"{_module_name(path)}:{node.lineno}", node


def _is_boundary(path: pathlib.Path) -> bool:
    """Returns whether a module reads command lines: a command or a package of commands."""
    name = _module_name(path)
    has_main = any(
        isinstance(node, ast.FunctionDef) and node.name == "main" for node in _tree(path).body
    )
    return has_main or name.startswith(("pipeline.commands", "pipeline.api"))


INSIDE = [path for path in SOURCES if not _is_boundary(path)]


def test_imports_follow_the_contracts() -> None:
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    result = run_python("-c", code, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_code_is_unused(tmp_path: pathlib.Path) -> None:
    # Tables refer to classes as "module:Class", which the tool does not see as uses.
    texts = [node.value for _, node in _nodes(SOURCES, ast.Constant) if isinstance(node.value, str)]
    named = [match[1] for text in texts if (match := re.fullmatch(r"\w+:([A-Z]\w*)", text))]
    (tmp_path / "named.py").write_text("\n".join(named))
    paths = ("data_specs", "pipeline", "tools", str(tmp_path / "named.py"))
    result = run_python("-m", "vulture", "--config", ".vulture.toml", *paths, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_feature_names_are_written_only_in_records() -> None:
    names = {feature.name for features in records.FEATURES.values() for feature in features}
    names |= {records.INPUT_MASK, records.SEGMENT_IDS, records.MASKED_LM_WEIGHTS}
    other_modules = [path for path in LIBRARY if path.name != "records.py"]
    texts = [
        f"{source_line} {n.value}"
        for source_line, n in _nodes(other_modules, ast.Constant)
        if n.value in names
    ]
    assert not texts


def test_only_commands_know_flags() -> None:
    absl = [
        source_line
        for source_line, node in _nodes(INSIDE, ast.Import, ast.ImportFrom)
        if "absl" in ast.unparse(node)
    ]
    assert not absl
    texts = [
        f"{source_line} {text.value!r}"
        for source_line, node in _nodes(INSIDE, ast.Raise)
        if isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func).endswith("Error")
        for text in ast.walk(node)
        if isinstance(text, ast.Constant)
        and isinstance(text.value, str)
        and re.search(r"(?<![\w-])--[a-z]", text.value)
    ]
    assert not texts, "name a setting as `name`; the command shows it as a flag"


def test_no_parameter_takes_the_name_of_a_flag() -> None:
    parameters = [
        source_line
        for source_line, node in _nodes(INSIDE, ast.arg)
        if node.arg in ("flag", "flag_name", "setting_flag")
    ]
    assert not parameters


def test_locations_are_parsed_at_the_boundary() -> None:
    # Declarations of corpora name files as text; the packages of corpora read them.
    homes = ("pipeline.base.location", "pipeline.base.settings", "pipeline.corpora")
    inside = [path for path in INSIDE if not _module_name(path).startswith(homes)]
    parsed = [
        source_line
        for source_line, node in _nodes(inside, ast.Call)
        if ast.unparse(node.func) in ("Location.parse", "location.Location.parse")
    ]
    compared = [
        source_line
        for source_line, node in _nodes(inside, ast.Call)
        if ast.unparse(node.func) == "isinstance"
        and re.search(r"\b(Bucket|Local)Location\b", ast.unparse(node.args[1]))
    ]
    assert not parsed + compared


def test_no_assert_in_library_code() -> None:
    assert not [source_line for source_line, _ in _nodes(SOURCES, ast.Assert)]


def test_models_and_losses_run_without_tensorflow() -> None:
    packages = ("data_specs", "pipeline.base", "pipeline.models", "pipeline.distill")
    names = {_module_name(path) for path in LIBRARY}
    free = sorted(name for name in names - NEEDS_TENSORFLOW if name.startswith(packages))
    code = (
        "import importlib, sys; sys.modules['tensorflow'] = None\n"
        f"for name in {free}: importlib.import_module(name)\n"
        "print(sys.modules['tensorflow'])"
    )
    assert run_python("-c", code, KERAS_BACKEND="jax").stdout.strip() == "None"


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("pipeline.create_pretraining_data", "--no_such=1"),
        ("pipeline.create_teacher_output_data", "--no_such=1"),
        ("pipeline.run_distill", "--no_such=1"),
        ("tools.convert_checkpoint", "--layout=onnx --output_dir=x"),
        ("tools.finetune", "--task=x --data_dir=y --model=z --output_dir=o"),
    ],
)
def test_invalid_flags_are_reported_before_heavy_imports(command: str, flags: str) -> None:
    code = (
        f"import sys, {command} as c; status = c.main(['x', *'{flags}'.split()]); "
        "heavy = {'tensorflow', 'keras', 'jax', 'tokenizers', 'sentencepiece', 'rjieba', "
        "'safetensors', 'huggingface_hub'}; print(status, sorted(heavy & set(sys.modules)))"
    )
    result = run_python("-c", code)
    # The settings of a task are checked together with the tokenizer.
    readers = ["tokenizers"] if command == "tools.finetune" else []
    assert result.stdout.strip() == f"1 {readers}"
    assert result.stderr.startswith("error: ")


def _runs_content(node: ast.AST) -> bool:
    """Returns whether a node imports or calls a function that runs the content of a file."""
    unsafe = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
    if isinstance(node, ast.Import):
        return any(alias.name in unsafe for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.module in unsafe
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in ("eval", "exec", "torch.load", "yaml.unsafe_load")
    return node.arg in ("allow_pickle", "trust_remote_code") and ast.unparse(node.value) != "False"


def test_no_content_of_a_file_is_run() -> None:
    kinds = (ast.Import, ast.ImportFrom, ast.Call, ast.keyword)
    assert not [source_line for source_line, node in _nodes(SOURCES, *kinds) if _runs_content(node)]
