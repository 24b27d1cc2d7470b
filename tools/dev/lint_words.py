"""Checks the English of this project: docstrings, comments, messages, help, names and pages.

    python -m tools.dev.lint_words [FILE …]

Without arguments, all Python files and pages of the project are checked. Prints one line for each
finding, and exits with status 1 if there is any.
"""

import ast
import dataclasses
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
# This file defines the banned phrases, and its tests use them. The model card is an output of
# `train_quickstart_teacher`, where its text is checked.
_SKIPPED_FILES = (
    "tools/dev/lint_words.py",
    "tests/tools/dev/test_lint_words.py",
    "tools/quickstart_teacher/README.md",
)
# Banned phrases, with the advice on each.
BANNED = {
    r"teacher's word": "teacher targets",
    r"\bgo(?:es)? on\b|\bwent on\b": "continue or resume",
    r"the same command (?:continues|goes on|finishes)": "re-run the command to resume",
    r"\bbeside it\b": "together with, or requires",
    r"\bnot as it must be\b|\bmisshapen\b": "invalid, malformed or of the wrong shape",
    r"\bdear(?:er|est)?\b": "expensive",
    r"\bbut for\b": "except",
    r"\bone's own\b": "your own",
    r"\b(?:un)?taught\b": "distilled student, or baseline student",
    r"\bout of the house\b|\bthe house\b": "the project",
    r"\bas many as\b.*\bas many as\b": "a sentence of one idea",
    r"\bat all the same\b|\ball the same\b": "nevertheless",
    r"\bfrom there on\b": "from then on, or after it",
    r"\bwith one another\b": "together",
    r"\bis no more than\b": "is only",
}
# Beginnings of words in British spelling, with the American one. They are banned in names too.
BRITISH = {
    "behaviour": "behavior",
    r"cancell(?=ed|ing)": "cancel",
    "centre": "center",
    "colour": "color",
    r"distils?(?![a-z_])": "distill",
    "favour": "favor",
    r"grey(?![a-z])": "gray",
    "honour": "honor",
    "judgement": "judgment",
    r"(?:un)?labell(?=ed|ing)": "label",
    r"(?<=\s)licence(?!s?[:`])": "license",
    r"modell(?=ed|ing)": "model",
    "neighbour": "neighbor",
    r"signall(?=ed|ing)": "signal",
    "analys(?=ed|ing)": "analyz",
    r"(?:factor|final|general|initial|local|maxim|minim|normal|optim|organ|parallel|quant|random|"
    r"recogn|serial|special|standard|summar|synchron|token|util|vector)is(?=e|ing|at)": "-iz",
}
_BRITISH = {
    re.compile(
        rf"(?<![^\W_])(?:{pattern})[a-z]*", re.IGNORECASE
    ): f"{advice}…, the American spelling"
    for pattern, advice in BRITISH.items()
}
_BANNED = {re.compile(pattern, re.IGNORECASE): advice for pattern, advice in BANNED.items()}
_BANNED |= _BRITISH
# Names that do not say what is in a variable.
VAGUE_NAMES = frozenset(
    ("places", "there", "here", "one", "found", "said", "told", "kept", "parts")
)
_OPENINGS = ("What ", "How ", "Which ", "All that ")
MAX_WORDS = 30
_SENTENCE_END = re.compile(r"(?<=[.:;!?])\s+|\n\s*\n")
_MIN_TEST_NAME_WORDS = 3


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    """A place in a file that breaks a rule."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def check_python(path: str, source: str) -> Iterator[Finding]:
    """Yields the findings in a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from _banned(path, token.start[0], token.string)
        elif token.type == tokenize.NAME:
            yield from _banned(path, token.start[0], token.string, _BRITISH)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _banned(path, node.lineno, node.value)
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield from _docstring(path, node)
        elif isinstance(node, ast.Call):
            yield from _long_texts(path, node)
        yield from _names(path, node)


def check_page(path: str, text: str) -> Iterator[Finding]:
    """Yields the findings in a Markdown page; code blocks are left out."""
    is_code = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield from _banned(path, number, line)


def _banned(
    path: str, line: int, text: str, patterns: Mapping[re.Pattern[str], str] = _BANNED
) -> Iterator[Finding]:
    for pattern, advice in patterns.items():
        for match in pattern.finditer(text):
            number = line + text.count("\n", 0, match.start())
            yield Finding(path, number, f"{match[0]!r}: write {advice}")


def _docstring(path: str, node: ast.Module | ast.ClassDef | ast.FunctionDef) -> Iterator[Finding]:
    docstring = ast.get_docstring(node)
    if docstring and docstring.startswith(_OPENINGS):
        line = node.body[0].lineno
        yield Finding(path, line, f"docstring opens with {docstring.split()[0]!r}: name the thing")


def _long_texts(path: str, node: ast.Call) -> Iterator[Finding]:
    """Yields the sentences with too many words in messages of errors and helps of settings."""
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    if name != "setting" and not name.endswith("Error"):
        return
    for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
        for text in _literals(argument):
            for sentence in _SENTENCE_END.split(text):
                words = len(sentence.split())
                if words > MAX_WORDS:
                    start = " ".join(sentence.split()[:5])
                    yield Finding(path, argument.lineno, f"sentence of {words} words: {start!r} …")


def _literals(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(next(_literals(value), "X") for value in node.values)


def _names(path: str, node: ast.AST) -> Iterator[Finding]:
    stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    name = node.id if stored else node.arg if isinstance(node, ast.arg) else None
    if name in VAGUE_NAMES:
        yield Finding(path, node.lineno, f"variable {name!r}: say what is in it")
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
        words = node.name.removeprefix("test_").split("_")
        if len(words) < _MIN_TEST_NAME_WORDS:
            yield Finding(path, node.lineno, f"{node.name}: name the claim that it checks")


def check_file(path: pathlib.Path) -> list[Finding]:
    """Returns the findings in a file, in order of lines."""
    path = path.resolve()
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    if name in _SKIPPED_FILES:
        return []
    check = check_page if path.suffix == ".md" else check_python
    return sorted(set(check(name, path.read_text(encoding="utf-8"))))


def project_files() -> list[pathlib.Path]:
    """Returns the Python files and pages of the project."""
    files = [ROOT / "setup.py", ROOT / "README.md"]
    for folder in ("pipeline", "tools", "data_specs", "tests"):
        files += sorted((ROOT / folder).rglob("*.py"))
        files += sorted((ROOT / folder).rglob("*.md"))
    return files


def main(argv: Sequence[str]) -> int:
    """Prints the findings in the given files, or in all files; returns the exit status."""
    files = [pathlib.Path(name) for name in argv[1:]] or project_files()
    findings = [finding for path in files for finding in check_file(path)]
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} findings", file=sys.stderr)
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
