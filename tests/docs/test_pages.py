"""Agreement of the documentation with the code: flags, files, links and generated tables."""

import importlib
import importlib.util
import pathlib
import re

import pytest
from absl import flags

from pipeline.base.errors import InputError
from pipeline.commands import offline_distill
from tests.conftest import ROOT
from tests.docs.markdown import Page, all_flags, commands, flags_of, read_page
from tools.dev import generated_tables

PAGES = {page.name: page for page in map(read_page, generated_tables.pages())}
MAIN = PAGES["README.md"]
# Flags of absl, of `offline_distill` itself and of other programs, and placeholders.
_OTHER_FLAGS = {
    "check",
    "engine",
    "flag",
    "flagfile",
    "flags",
    "help",
    "logdir",
    "noflag",
    "seconds",
    "version",
}
_MAX_WORDS = 25
_NAMED_PATH = re.compile(r"(?:data_specs|pipeline|tools|tests)/[\w./*-]+")
_NAMED_MODULE = re.compile(r"(?:data_specs|pipeline|tools|tests)(?:\.\w+)+")
_RUN_MODULE = re.compile(r"-m ((?:data_specs|pipeline|tools|tests)(?:\.[a-z_]+)+)")
_FLAG = re.compile(r"(?<![\w-])--(\w+)(?![\w-])")


def _all_pages(test):
    return pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)(test)


def test_main_page_is_at_most_12_kilobytes() -> None:
    assert len(MAIN.text.encode("utf-8")) <= 12 * 1024


@_all_pages
def test_generated_tables_are_current(page: Page) -> None:
    assert generated_tables.with_tables(page.text) == page.text


def test_outdated_table_is_regenerated() -> None:
    page = PAGES["pipeline/models/README.md"].text
    row = next(line for line in page.splitlines() if line.startswith("| BERT"))
    outdated = page.replace(row, "| old | row |")
    assert outdated != page and generated_tables.with_tables(outdated) == page


def test_every_kind_of_table_is_on_a_page() -> None:
    kinds = {kind for page in PAGES.values() for kind in re.findall(r"<!-- (\w+) of", page.text)}
    assert kinds - {"end"} == set(generated_tables.TABLES)


@_all_pages
def test_links_and_anchors_resolve(page: Page) -> None:
    for target in page.links:
        path, anchor = page.resolve(target)
        assert path.exists() and path.is_relative_to(ROOT), target
        assert not anchor or anchor in read_page(path).anchors, target


def test_every_page_is_linked_from_the_main_page() -> None:
    reached, pending = set(), [MAIN.name]
    while pending:
        name = pending.pop()
        if name in PAGES and name not in reached:
            reached.add(name)
            paths = (PAGES[name].resolve(target)[0] for target in PAGES[name].links)
            pending += [path.relative_to(ROOT).as_posix() for path in paths]
    assert reached == set(PAGES)


@_all_pages
def test_every_page_has_one_title_and_no_headings_in_bold(page: Page) -> None:
    assert len(re.findall(r"^# ", page.prose, re.MULTILINE)) == 1
    assert not re.findall(r"^(?:- )?\*\*.*", page.prose, re.MULTILINE)


@_all_pages
def test_sentences_have_at_most_25_words(page: Page) -> None:
    words = {sentence: len(re.findall(r"\S*\w\S*", sentence)) for sentence in page.sentences}
    assert not {sentence: count for sentence, count in words.items() if count > _MAX_WORDS}


@_all_pages
def test_named_files_and_modules_exist(page: Page) -> None:
    for code in page.code:
        if _NAMED_PATH.fullmatch(code):
            # NAME is a placeholder for any name.
            assert any(ROOT.glob(re.sub(r"\bNAME\b", "*", code.rstrip("/")))), code
        elif match := _RUN_MODULE.search(code):
            assert importlib.util.find_spec(match[1]) is not None, code
        elif _NAMED_MODULE.fullmatch(code) and "NAME" not in code:
            assert _exists(code), code


def _exists(name: str) -> bool:
    """Returns whether a dotted name is a module or an object in a module."""
    module, _, attribute = name.rpartition(".")
    if (ROOT / f"{name.replace('.', '/')}.py").is_file() or (
        ROOT / name.replace(".", "/")
    ).is_dir():
        return True
    return hasattr(importlib.import_module(module), attribute)


@_all_pages
def test_flags_in_the_prose_exist(page: Page) -> None:
    named = {match[1] for code in page.code for match in _FLAG.finditer(code)}
    unknown = named - all_flags() - _OTHER_FLAGS
    assert not unknown


_PROGRAMS = [
    pytest.param(module, arguments, id=f"{block.location}-{module}")
    for page in PAGES.values()
    for block in page.blocks
    if block.language == "bash"
    for module, arguments in commands(block.text)
]


@pytest.mark.parametrize(("module", "arguments"), _PROGRAMS)
def test_commands_in_blocks_have_valid_flags(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, module: str, arguments: list[str]
) -> None:
    assert importlib.util.find_spec(module) is not None
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"=([\w/]+\.flags)", " ".join(arguments)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    values = flags_of(module)
    # Variables become a number, which is valid both as a number and as a path.
    command_arguments = [re.sub(r"\$\w+", "1", word) for word in arguments]
    if values is None:
        source = pathlib.Path(importlib.import_module(module).__file__).read_text(encoding="utf-8")
        assert all(f'"{argument.partition("=")[0]}"' in source for argument in command_arguments)
        return
    for word in [word for word in command_arguments if word.endswith("=DATA")]:
        # The value is set without parsing, because parsing would read the directory of a task.
        name, _, value = word.removeprefix("--").partition("=")
        values[name].value = value
        command_arguments.remove(word)
    try:
        positional = values([module, *command_arguments])[1:]
    except (flags.Error, InputError) as error:
        pytest.fail(str(error))
    assert not [word for word in positional if not word.startswith(">")]


def test_blocks_have_a_known_info_string() -> None:
    languages = {"", "bash", "python", "bibtex"}
    for page in PAGES.values():
        for block in page.blocks:
            assert block.language in languages, block.location
            assert re.fullmatch(r"|no-run: .+|requires [\w,]+", block.note), block.location


def test_every_tool_has_a_section_with_a_command() -> None:
    page = PAGES["tools/README.md"]
    sections = dict(re.findall(r"^#+ (\w+)\n(.*?)(?=^#+ |\Z)", page.text, re.DOTALL | re.MULTILINE))
    tools = set(offline_distill.find_programs()) - set(offline_distill.COMMANDS)
    for name in tools:
        assert f"offline_distill {name}" in sections.get(name, ""), name


def test_python_blocks_compile() -> None:
    for page in PAGES.values():
        for block in page.blocks:
            if block.language == "python":
                compile(block.text, block.location, "exec")


def test_commands_are_found_in_loops_pipes_and_arguments() -> None:
    script = (
        "for i in 1 2; do\n  A=1 run_distill --x=$i \\\n    --y &\ndone; wait\n"
        "cat <<'E'\nrun_distill --z\nE\n"
        'ssh --command="run_distill --w"\n'
        "offline_distill report --a || python -m tools.dev.soak --b  # run_distill --c\n"
    )
    assert list(commands(script)) == [
        ("pipeline.run_distill", ["--x=$i", "--y"]),
        ("pipeline.run_distill", ["--w"]),
        ("tools.report.__main__", ["--a"]),
        ("tools.dev.soak", ["--b"]),
    ]
