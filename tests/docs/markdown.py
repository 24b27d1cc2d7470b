"""A reader of documentation pages: fenced blocks, their commands, links and names in the prose."""

import dataclasses
import functools
import importlib
import pathlib
import re
import shlex
from collections.abc import Iterator
from unittest import mock

from absl import flags

from pipeline.commands import offline_distill, running
from tests.conftest import ROOT

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_GENERATED = re.compile(r"<!-- (\w+) of .*?<!-- end of \1 -->", re.DOTALL)
_TARGET = re.compile(r"\]\([^)]*\)")
# A paragraph ends at a blank line, a heading, a list item, or a table cell.
_PARAGRAPH_END = re.compile(r"\n\s*\n|\n(?=- |\d+\. |#)|\|")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z`\[])")
_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
_SEPARATORS = frozenset(";&|()")
_NO_RUN = "no-run:"
_REQUIRES = "requires "


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        location: the page and the line of its fence.
        language: the first word of its info string.
        note: the rest of the info string.
        text: the content of the block.
    """

    location: str
    language: str
    note: str
    text: str

    @property
    def is_run(self) -> bool:
        """Whether the block is an example that runs on every machine."""
        return self.language in ("bash", "python") and not self.note.startswith(_NO_RUN)

    @property
    def modules(self) -> list[str]:
        """The modules that must be installed to run the block."""
        is_conditional = self.note.startswith(_REQUIRES)
        return self.note.removeprefix(_REQUIRES).split(",") if is_conditional else []


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of documentation.

    Attributes:
        path: the file of the page.
        text: the content of the page.
    """

    path: pathlib.Path
    text: str

    @property
    def name(self) -> str:
        """The path of the page relative to the project."""
        return self.path.relative_to(ROOT).as_posix()

    @functools.cached_property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return _FENCE.sub("", self.text)

    @functools.cached_property
    def blocks(self) -> list[Block]:
        """The fenced blocks, in order."""
        blocks = []
        for match in _FENCE.finditer(self.text):
            language, _, note = match[1].partition(" ")
            line = self.text.count("\n", 0, match.start()) + 1
            blocks.append(Block(f"{self.name}:{line}", language, note, match[2]))
        return blocks

    @functools.cached_property
    def sentences(self) -> list[str]:
        """The sentences of the prose and of tables that are not generated."""
        text = _GENERATED.sub("", self.prose)
        paragraphs = _PARAGRAPH_END.split(_TARGET.sub("]", text))
        joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
        return [sentence for paragraph in joined for sentence in _SENTENCE_END.split(paragraph)]

    @functools.cached_property
    def anchors(self) -> set[str]:
        """The anchors that GitHub gives the headings."""
        titles = (match[1].strip().lower() for match in _HEADING.finditer(self.prose))
        return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}

    @functools.cached_property
    def links(self) -> list[str]:
        """The targets of links that are not URLs."""
        targets = (match[1] for match in _LINK.finditer(self.prose))
        return [target for target in targets if not re.match(r"\w+:", target)]

    @functools.cached_property
    def code(self) -> list[str]:
        """The inline code in the prose."""
        return [match[1] for match in _CODE.finditer(self.prose)]

    def resolve(self, target: str) -> tuple[pathlib.Path, str]:
        """Returns the file and the anchor that a link names."""
        path, _, anchor = target.partition("#")
        return (self.path.parent / path).resolve() if path else self.path, anchor


def read_page(path: pathlib.Path) -> Page:
    """Reads a page."""
    return Page(path, path.read_text(encoding="utf-8"))


def _logical_lines(script: str) -> Iterator[str]:
    """Yields the lines of a shell script with continued lines joined, without here-documents."""
    lines = iter(script.replace("\\\n", " ").splitlines())
    for line in lines:
        yield line
        if match := _HEREDOC.search(line):
            while next(lines, match[1]) != match[1]:
                pass


def _simple_commands(script: str) -> Iterator[list[str]]:
    """Yields the words of each command of a shell script."""
    for line in _logical_lines(script):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= _SEPARATORS:
                yield words
                words = []
            else:
                words.append(word)


def commands(script: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the programs of this project that a shell script runs, and their arguments.

    A program is named by its module. A command in an argument of another command is included.
    """
    programs = offline_distill.find_programs()
    modules = {
        name: ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name, path in programs.items()
    }
    for words in _simple_commands(script):
        for index, word in enumerate(words):
            arguments = words[index + 1 :]
            if word in offline_distill.COMMANDS:
                yield modules[word], arguments
            elif word == "offline_distill" and arguments:
                # An unknown name is yielded as a module, which the test then reports as missing.
                yield modules.get(arguments[0], arguments[0]), arguments[1:]
            elif word == "-m" and arguments[0].startswith(("tools.", "tests.", "pipeline.")):
                yield arguments[0], arguments[1:]
            elif word.startswith("--command="):
                yield from commands(word.partition("=")[2])
            else:
                continue
            break


def flags_of(module: str) -> flags.FlagValues | None:
    """Returns the unparsed flags of a program; None if it has its own argument parser."""
    program = importlib.import_module(module)
    with mock.patch.object(running, "run", return_value=0) as run:
        if "running.run(" in pathlib.Path(program.__file__).read_text(encoding="utf-8"):
            program.main([module])
    return run.call_args.args[0] if run.called else None


@functools.cache
def all_flags() -> frozenset[str]:
    """Returns the names of the flags of all programs, and `no` names of boolean flags."""
    paths = [*offline_distill.find_programs().values(), *(ROOT / "tools" / "dev").glob("*.py")]
    names: set[str] = set()
    for path in paths:
        if "running.run(" in path.read_text(encoding="utf-8"):
            values = flags_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            names.update(values)
            names.update(f"no{name}" for name in values if values[name].boolean)
    return frozenset(names)
