"""Tests that the weight of a corpus decides the number of its masked copies."""

import dataclasses
from collections import Counter

import msgspec
import pytest

from data_specs.corpora import CorpusSource
from pipeline.base import seeding
from pipeline.base.errors import InputError
from pipeline.masking.document_masker import DocumentMasker
from pipeline.masking.masked_examples import create_masked_examples, describe
from tests.conftest import make_text


@pytest.fixture
def sources(tmp_path) -> tuple[CorpusSource, CorpusSource]:
    """Two corpora of forty documents each, whose files have the same name."""
    for name, seed in (("one", 11), ("two", 12)):
        (tmp_path / name).mkdir()
        text = "\n\n".join(make_text(seed=seed, num_documents=40))
        (tmp_path / name / "a.txt").write_text(text, encoding="utf-8")
    return tuple(CorpusSource(name=name, input_dir=str(tmp_path / name)) for name in ("one", "two"))


def _make(examples_config, folder, *sources: CorpusSource, **changes):
    config = dataclasses.replace(
        examples_config, corpora=sources, output_dir=str(folder), dupe_factor=4, **changes
    )
    return create_masked_examples(config)


def test_weight_multiplies_the_number_of_copies(tmp_path, examples_config, sources) -> None:
    first, second = sources
    plain = _make(examples_config, tmp_path / "plain", first, second)
    weighted = _make(
        examples_config,
        tmp_path / "weighted",
        msgspec.structs.replace(first, weight=1.5),
        msgspec.structs.replace(second, weight=0.125),
    )
    plain_counts = plain.statistics["examples_by_corpus"]
    counts = weighted.statistics["examples_by_corpus"]
    assert counts["one"] == plain_counts["one"] * 1.5
    # The average of 0.125 · 4 = 0.5 copies means that half of the documents have a copy.
    assert 0.06 < counts["two"] / plain_counts["two"] < 0.2
    assert 8 <= weighted.statistics["skipped"]["left out by the weight of their corpus"] <= 32
    text = "\n".join(describe(weighted))
    assert f"{counts['one']:,} examples of one" in text
    assert f"{counts['two']:,} examples of two" in text


def test_bytes_do_not_depend_on_workers_or_order(tmp_path, examples_config, sources) -> None:
    first, second = (msgspec.structs.replace(source, weight=0.6) for source in sources)
    splits = _make(examples_config, tmp_path / "a", first, second).splits
    assert _make(examples_config, tmp_path / "b", first, second, max_workers=2).splits == splits
    swapped = _make(examples_config, tmp_path / "c", second, first).splits
    assert {name: [shard.sha256 for shard in shards] for name, shards in swapped.items()} == {
        name: [shard.sha256 for shard in shards] for name, shards in splits.items()
    }


def test_another_weight_is_another_run_configuration(tmp_path, examples_config, sources) -> None:
    first, second = sources
    _make(examples_config, tmp_path / "a", first, second)
    with pytest.raises(InputError, match=r"corpora\[1\]\.weight \(recorded 1\.0, now 2\.0\)"):
        _make(examples_config, tmp_path / "a", first, msgspec.structs.replace(second, weight=2.0))


def test_average_number_of_copies_equals_weight_times_dupe_factor(examples_config) -> None:
    masker = DocumentMasker(dataclasses.replace(examples_config, dupe_factor=5))
    keys = [seeding.digest(number) for number in range(4000)]
    assert {masker.num_copies(key, 1.0) for key in keys} == {5}
    assert {masker.num_copies(key, 2.0) for key in keys} == {10}
    counts = Counter(masker.num_copies(key, 0.3) for key in keys)
    assert set(counts) == {1, 2}
    assert abs(counts[2] / len(keys) - 0.5) < 0.04
