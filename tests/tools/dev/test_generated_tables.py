"""Tests of generated_tables: each table is complete."""

import re
from collections.abc import Iterator

import pytest

from data_specs import corpora, recipes, records, tasks
from pipeline.distill.losses import LOSSES
from pipeline.models.families import FAMILIES, REFUSED
from pipeline.models.formats import FORMATS
from pipeline.tokenizers.loading import tokenizer_files
from tools.dev import generated_tables


def _rows(which: str) -> list[str]:
    return generated_tables.model_table(which).splitlines()[2:]


def test_the_tables_of_models_have_a_row_for_all_published_and_refused_ones() -> None:
    published = [models for family in FAMILIES.values() for models in family.published]
    assert len(_rows("opened")) == len(published)
    assert len(_rows("refused")) == len(REFUSED) > 0


@pytest.mark.parametrize("model_type", FAMILIES)
def test_published_models_have_names_and_files_that_are_read(tmp_path, model_type: str) -> None:
    read = {name for kind in FORMATS.values() for name in kind.file_names}
    published = FAMILIES[model_type].published
    names = [name for models in published for name in models.names]
    assert names and len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", name) for name in names)
    for models in published:
        assert models.weights and set(models.weights) <= read
        for name in models.tokenizer:
            (tmp_path / name).touch()
        read_names = {path.name for path in tokenizer_files(tmp_path)}
        assert models.tokenizer and set(models.tokenizer) <= read_names


def _declared(value: object) -> Iterator[records.Feature]:
    """Yields the features in a table of features, at any depth."""
    if isinstance(value, records.Feature):
        yield value
    elif isinstance(value, dict):
        yield from _declared(tuple(value.values()))
    elif isinstance(value, tuple):
        for item in value:
            yield from _declared(item)


def test_the_table_of_features_has_all_declared_features() -> None:
    declared = {feature for value in vars(records).values() for feature in _declared(value)}
    table = generated_tables.feature_table("all")
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    listed = {(row[0].strip("`"), row[2], row[4]) for row in rows}
    expected = {(f.name, "·".join(f.shape), f.meaning) for f in declared}
    assert listed == expected


def test_the_table_of_losses_names_the_source_of_teacher_targets() -> None:
    rows = [row.split(" | ") for row in generated_tables.loss_table("all").splitlines()[2:]]
    sources = {row[0].strip("|` "): row[4] for row in rows}
    assert list(sources) == list(LOSSES)
    assert sources["masked_lm"] == "none" and sources["attention_mse"] == "live teacher"
    assert sources["hidden_mse_masked"] == "cache with `--cache_hidden_states`"


def test_changed_pages_are_written_and_printed(tmp_path, monkeypatch, capsys) -> None:
    outdated = "<!-- recipes of names -->\nold\n<!-- end of recipes -->\n"
    current = generated_tables.with_tables(outdated)
    pages = {tmp_path / "a.md": outdated, tmp_path / "b.md": current}
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(generated_tables, "ROOT", tmp_path)
    monkeypatch.setattr(generated_tables, "pages", lambda: list(pages))
    assert generated_tables.main(["generated_tables"]) == 0
    assert capsys.readouterr().out.splitlines() == ["updated a.md"]
    assert {path.read_text(encoding="utf-8") for path in pages} == {current}


def test_the_table_of_recipes_reads_the_commands_of_their_comments() -> None:
    rows = [row.split(" | ") for row in generated_tables.recipe_table("all").splitlines()[2:]]
    cells = {row[0].partition("`")[2].partition("`")[0]: row[2:4] for row in rows}
    assert tuple(cells) == recipes.names()
    assert cells["distilbert"] == ["live teacher", "dynamic"]
    assert cells["minirbt"] == ["teacher cache", "static"]


@pytest.mark.parametrize(
    ("which", "spec"), [("corpus", corpora.CorpusSpec), ("task", tasks.TaskSpec)]
)
def test_the_tables_of_keys_have_all_keys_of_a_declaration(which: str, spec: type) -> None:
    rows = generated_tables.key_table(which).splitlines()[2:]
    keys = [row.split("`")[1] for row in rows]
    assert sorted([*keys, "name"]) == sorted(spec.__struct_fields__)
    # Names of constants in a description are replaced by their values.
    assert not re.search(r"`[A-Z_]{3,}`", "".join(rows))
