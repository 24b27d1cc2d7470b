"""Writes the tables of the README files: `python -m tools.dev.generated_tables [--check]`.

A table stands between `<!-- KIND of NAME -->` and `<!-- end of KIND -->`. `TABLES` has a function
for each kind of table. The functions use the code and the declarations.
"""

import dataclasses
import importlib
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from data_specs import corpora, declarations, recipes, records, tasks
from pipeline.commands import flags, offline_distill, running
from pipeline.distill.losses import LOSSES, base, load_loss
from pipeline.models.families import FAMILIES, REFUSED
from pipeline.storage.codecs import ENCODINGS, HIDDEN_CODECS

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("data_specs", "pipeline", "tools", "tests")
_TABLE = re.compile(r"(<!-- (\w+) of (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
# A key and its description in the docstring of a declaration.
_KEY = re.compile(r"^    (\w+): ((?:.+\n(?:        )?)*?.+)$(?=\n    \w+: |\Z)", re.MULTILINE)
# A constant in such a description that lists the values of the key.
_CHOICES = re.compile(r"`((?:[a-z_]+\.)*[A-Z_]{3,})`")
_COMMAND_FLAG = re.compile(r"--(\w+)(?:=(\S+))?")
# Sources of the teacher targets that a loss requires.
_SOURCES = {
    base.TOPK: "teacher cache or live teacher",
    base.LABEL: "none",
    base.HIDDEN: "live teacher",
    base.ATTENTION: "live teacher",
    base.SCORES: "live teacher",
    base.RELATIONS: "live teacher",
    base.EMBEDDING: "live teacher, or cache with `--cache_embedding`",
}
_CACHED_STATES = "cache with `--cache_hidden_states`"


def pages() -> list[pathlib.Path]:
    """Returns the README files and other pages of the project, the main page first."""
    others = (path for name in PACKAGES for path in (ROOT / name).rglob("*.md"))
    return [ROOT / "README.md", *sorted(others)]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join(lines) + "\n"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _summary(thing: object) -> str:
    """Returns the first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def flag_table(command: str) -> str:
    """Returns the table of a command's flags, in the order of their declaration."""
    module = importlib.import_module(f"pipeline.{command}")
    rows = []
    for field in module.FLAGS.fields():
        flag = flags.describe_flag(field)
        # Some defaults depend on the machine; the flag's help explains them.
        default = "" if flag.name in module.FLAGS.defaults else flag.default
        rows.append((f"`--{flag.name}`", default, flag.constraint, flag.help))
    return _table(("flag", "default", "values", ""), rows)


def model_table(which: str) -> str:
    """Returns the table of the model families that are `opened`, or `refused`."""
    if which == "refused":
        rows = (
            (f"`{name}`", f"{reason[0].upper()}{reason[1:]}.") for name, reason in REFUSED.items()
        )
        return _table(("`model_type`", "reason"), rows)
    rows = (
        (
            family.title,
            f"`{family.model_type}`",
            _code(models.names),
            _code(models.weights),
            _code(models.tokenizer),
            models.note,
        )
        for family in FAMILIES.values()
        for models in family.published
    )
    return _table(("family", "`model_type`", "models", "weights", "tokenizer", ""), rows)


def family_table(which: str) -> str:
    """Returns the table of model families with examples from the hub; `which` is `names`."""
    rows = (
        (family.title, _code(models.names[0] for models in family.published[:3]))
        for family in FAMILIES.values()
    )
    return _table(("family", "for example"), rows)


def _sources(loss: type[base.Loss]) -> str:
    if loss.needs == base.HIDDEN and loss.averaged_over == base.MASKED:
        return _CACHED_STATES
    source = _SOURCES[loss.needs]
    return source if loss.from_cache is None else f"{source}, or {_CACHED_STATES}"


def _defaults(loss: type[base.Loss]) -> str:
    values = {"tail": loss.default_tail, "layer_groups": loss.default_layer_groups}
    return _code(f"--{name}={value}" for name, value in values.items() if value is not None)


def loss_table(which: str) -> str:
    """Returns the table of the losses; `which` is `all`."""
    rows = (
        (
            f"`{name}`",
            _summary(loss),
            loss.averaged_over,
            "yes" if loss.uses_temperature else "",
            _sources(loss),
            _defaults(loss),
        )
        for name, loss in ((name, load_loss(name)) for name in LOSSES)
    )
    titles = ("loss", "definition", "averaged over", "uses T", "teacher targets", "default")
    return _table(titles, rows)


def _features() -> Iterator[tuple[str, records.Feature]]:
    """Yields the features of records, each with the kind of records that have it."""
    for feature in records.MASKED_EXAMPLE_FEATURES:
        yield "all but unmasked windows", feature
    for feature in records.UNMASKED_WINDOW_FEATURES:
        if feature not in records.MASKED_EXAMPLE_FEATURES:
            yield "unmasked windows", feature
    for name, features in records.TOPK_FEATURES.items():
        for feature in features:
            yield f"`--logit_encoding={name}`", feature
    yield "k varies", records.TOPK_COUNTS_FEATURE
    yield "with a top-k", records.MASS_FEATURES[0]
    yield "teacher cache", records.LABEL_FEATURE
    for bits, features in records.HEAD_STATE_FEATURES.items():
        for feature in features:
            yield f"`--logit_encoding=states --state_bits={bits}`", feature
    for name, features in records.HIDDEN_FEATURES.items():
        for feature in features:
            yield f"`--hidden_encoding={name}`", feature
    yield "`--cache_embedding`", records.EMBEDDING_FEATURE
    for feature in records.TASK_LOGITS_FEATURES:
        yield "logits of `finetune`", feature


def feature_table(which: str) -> str:
    """Returns the table of the features of records; `which` is `all`."""
    rows = (
        (
            f"`{feature.name}`",
            "id" if feature.dtype == records.ID_DTYPE else np.dtype(feature.dtype).name,
            "·".join(feature.shape),
            kind,
            feature.meaning,
        )
        for kind, feature in _features()
    )
    return _table(("feature", "dtype", "shape", "in", "meaning"), rows)


def codec_table(which: str) -> str:
    """Returns the table of the codecs of teacher targets; `which` is `all`."""
    tables = {"logit_encoding": ENCODINGS, "hidden_encoding": HIDDEN_CODECS}
    rows = (
        (f"`--{flag}={name}`", _summary(codec))
        for flag, codecs in tables.items()
        for name, codec in codecs.items()
    )
    return _table(("codec", ""), rows)


def corpus_table(which: str) -> str:
    """Returns the table of the known corpora; `which` is `all`."""
    specs = map(corpora.load_spec, corpora.names())
    rows = ((f"[`{s.name}`]({s.url})", s.language, s.title, s.licence) for s in specs)
    return _table(("`--corpus_spec`", "language", "", "license"), rows)


def task_table(which: str) -> str:
    """Returns the table of the known tasks; `which` is `all`."""
    specs = map(tasks.load_task, declarations.known_names(tasks.FOLDER))
    rows = (
        (f"[`{s.name}`]({s.url})", s.language, s.kind, _code(s.metrics), s.title) for s in specs
    )
    return _table(("`--task`", "language", "kind", "metrics", ""), rows)


def _choices(spec: type, name: str) -> str:
    """Returns the values of a constant that a declaration's docstring names.

    Args:
        spec: class of the declaration.
        name: name of the constant, with its module unless that is the module of `spec`.
    """
    module, _, constant = name.rpartition(".")
    table = getattr(importlib.import_module(module or spec.__module__), constant)
    if isinstance(table, Mapping) and all(isinstance(value, tuple) for value in table.values()):
        return ", ".join(f"{_code(values)} ({key})" for key, values in table.items())
    return _code(table)


def key_table(which: str) -> str:
    """Returns the table of the keys of a declaration: `corpus` or `task`."""
    spec = {"corpus": corpora.CorpusSpec, "task": tasks.TaskSpec}[which]
    described = (inspect.getdoc(spec) or "").partition("Attributes:\n")[2]
    rows = (
        (f"`{key}`", _CHOICES.sub(lambda match: _choices(spec, match[1]), " ".join(text.split())))
        for key, text in _KEY.findall(described)
        # The key `name` is not in the file: it is the file's name.
        if key != "name"
    )
    return _table(("key", ""), rows)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """The flagfile of a recipe.

    Attributes:
        name: value of `--recipe`.
        title: first line of the file.
        commands: flags of the commands in the file's comment, by command.
        flags: flags that the file sets.
    """

    name: str
    title: str
    commands: Mapping[str, Mapping[str, str]]
    flags: Mapping[str, str]

    @property
    def teacher(self) -> str:
        """Source of the teacher targets."""
        is_live = "teacher" in self.commands["run_distill"]
        return "live teacher" if is_live else "teacher cache"


def _read_recipe(name: str) -> _Recipe:
    lines = recipes.find(name).read_text(encoding="utf-8").splitlines()
    comment = "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    commands: dict[str, Mapping[str, str]] = {}
    for line in comment.replace("\\\n", "").splitlines():
        command = line.partition(" ")[0]
        # Other runs of run_distill may come before the one that runs the recipe.
        if command in offline_distill.COMMANDS and (
            command != "run_distill" or f"--recipe={name}" in line
        ):
            commands.setdefault(command, dict(_COMMAND_FLAG.findall(line)))
    settings = "\n".join(line for line in lines if line.startswith("--"))
    return _Recipe(
        name, lines[0].removeprefix("# "), commands, dict(_COMMAND_FLAG.findall(settings))
    )


def recipe_table(which: str) -> str:
    """Returns the table of the recipes, with their `names` or with `all` columns."""
    files = map(_read_recipe, recipes.names())
    if which == "names":
        rows = ((f"`{recipe.name}`", recipe.title, recipe.teacher) for recipe in files)
        return _table(("`--recipe`", "student", "teacher targets"), rows)
    rows = (
        (
            f"[`{recipe.name}`](recipes/{recipe.name}.flags)",
            recipe.title,
            recipe.teacher,
            recipe.commands.get("create_pretraining_data", {}).get("masking", "static"),
            _code(recipe.flags["losses"].split(",")),
            recipe.flags.get("temperature", "1"),
        )
        for recipe in files
    )
    titles = ("`--recipe`", "student", "teacher targets", "masks", "losses", "temperature")
    return _table(titles, rows)


def tool_table(which: str) -> str:
    """Returns the table of the tools for `users` or for `developers`."""
    if which == "users":
        programs = offline_distill.find_programs()
        paths = {name: programs[name] for name in programs if name not in offline_distill.COMMANDS}
    else:
        modules = sorted((ROOT / "tools" / "dev").glob("*.py"))
        paths = {path.stem: path for path in modules if "\ndef main(" in path.read_text("utf-8")}
    rows = ((f"[`{name}`](#{name})", offline_distill.summary(path)) for name, path in paths.items())
    return _table(("tool", ""), rows)


TABLES: Mapping[str, Callable[[str], str]] = {
    "codecs": codec_table,
    "corpora": corpus_table,
    "families": family_table,
    "features": feature_table,
    "flags": flag_table,
    "keys": key_table,
    "losses": loss_table,
    "models": model_table,
    "recipes": recipe_table,
    "tasks": task_table,
    "tools": tool_table,
}


def with_tables(text: str) -> str:
    """Returns the text of a page with current tables."""
    return _TABLE.sub(lambda match: match[1] + TABLES[match[2]](match[3]) + match[4], text)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the tables and prints the changed pages; with `--check`, checks them only."""
    is_check = list(sys.argv if argv is None else argv)[1:] == ["--check"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    running.import_quietly("keras")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        updated = with_tables(text)
        if text != updated and is_check:
            print(f"error: {page}: run python -m tools.dev.generated_tables", file=sys.stderr)
            return 1
        if text != updated:
            page.write_text(updated, encoding="utf-8")
            print(f"updated {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
