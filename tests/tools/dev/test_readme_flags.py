"""The page of models that open: it has all that the registry declares."""

import re

import pytest

from pipeline.models.families import FAMILIES, REFUSED
from pipeline.models.formats import FORMATS
from pipeline.tokenizers.loading import tokenizer_files
from tools.dev import readme_flags

PAGE = readme_flags.MODELS_README.read_text(encoding="utf-8")


def _rows(which: str) -> list[str]:
    return readme_flags.model_table(which).splitlines()[2:]


def test_the_page_has_a_row_for_all_published_models_and_refused_families() -> None:
    for which in ("opened", "refused"):
        assert all(row in PAGE for row in _rows(which))
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
        found = {path.name for path in tokenizer_files(tmp_path)}
        assert models.tokenizer and set(models.tokenizer) <= found


def test_an_outdated_table_is_written_anew() -> None:
    row = _rows("refused")[0]
    outdated = PAGE.replace(row, "| old | row |")
    assert outdated != PAGE and readme_flags.with_tables(outdated) == PAGE
