"""Entities of tags and their scores: values by hand, the definition, and seqeval."""

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import tasks
from pipeline.base.location import Location
from tools.finetuning.kinds.token_classification import (
    entity_scores,
    find_entities,
    tag_entities,
)
from tools.finetuning.task_data import read_split

SHARED = Location.parse(pathlib.Path(__file__).parents[4] / "shared")
TAGS = ("O", *(f"{prefix}-{name}" for prefix in "BIES" for name in ("PER", "LOC", "ORG.NAM")))


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("", []),
        ("O O", []),
        ("B-X I-X O B-X", [("X", 0, 1), ("X", 3, 3)]),
        ("B-X B-X", [("X", 0, 0), ("X", 1, 1)]),
        # IOB1: I- begins an entity unless it continues an entity of the same type.
        ("I-X I-X O I-Y", [("X", 0, 1), ("Y", 3, 3)]),
        ("I-X I-Y B-Y I-Y", [("X", 0, 0), ("Y", 1, 1), ("Y", 2, 3)]),
        ("B-X I-Y", [("X", 0, 0), ("Y", 1, 1)]),
        ("B-X I-X E-X S-X", [("X", 0, 2), ("X", 3, 3)]),
        ("E-X E-X I-X", [("X", 0, 0), ("X", 1, 1), ("X", 2, 2)]),
        ("S-X I-X E-X", [("X", 0, 0), ("X", 1, 2)]),
        ("B-a-b I-a-b", [("a-b", 0, 1)]),
    ],
)
def test_find_entities_reads_every_tagging_scheme(tags: str, entities: list) -> None:
    assert find_entities(tags.split()) == entities


@st.composite
def _sentences(draw) -> tuple[list[tuple[str, int, int]], int]:
    entities, position = [], 0
    for gap, length, name in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from("XY")), max_size=6)
    ):
        position += gap
        entities.append((name, position, position + length - 1))
        position += length
    return entities, position + draw(st.integers(0, 2))


@given(_sentences(), st.sampled_from(tuple(tasks.SCHEMES)))
def test_entities_survive_conversion_to_tags(sentence, scheme: str) -> None:
    entities, num_words = sentence
    tags = tag_entities(entities, num_words, scheme)
    assert len(tags) == num_words and all(tasks.is_tag(tag, scheme) for tag in tags)
    assert find_entities(tags) == entities


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_contain_each_tagged_word_once(tags: list[str]) -> None:
    entities = find_entities(tags)
    inside = [position for _, first, last in entities for position in range(first, last + 1)]
    assert inside == [position for position, tag in enumerate(tags) if tag != "O"]
    for name, first, last in entities:
        assert {tag.partition("-")[2] for tag in tags[first : last + 1]} == {name}


def test_entity_scores_equal_values_computed_by_hand() -> None:
    """Two of three entities are predicted, and one of these ends at another word."""
    expected_tags = [["B-X", "I-X", "O"], ["B-Y", "O", "B-X"]]
    predicted = [["B-X", "O", "O"], ["B-Y", "O", "O"]]
    scores = entity_scores(expected_tags, predicted)
    assert scores == pytest.approx(
        # Only the entity of type Y is correct.
        {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "f1_macro": 1 / 2}
    )


def test_scores_without_entities_are_zero() -> None:
    none = [["O", "O"]]
    assert set(entity_scores(none, none).values()) == {0.0}
    assert entity_scores([["B-X", "O"]], none)["f1"] == 0.0
    assert entity_scores(none, [["B-X", "O"]])["precision"] == 0.0


def _assert_seqeval_scores(expected_tags: list[list[str]], predicted: list[list[str]]) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    expected = {
        "precision": metrics.precision_score(expected_tags, predicted, zero_division=0),
        "recall": metrics.recall_score(expected_tags, predicted, zero_division=0),
        "f1": metrics.f1_score(expected_tags, predicted, zero_division=0),
        "f1_macro": metrics.f1_score(expected_tags, predicted, zero_division=0, average="macro"),
    }
    if not any(map(find_entities, [*expected_tags, *predicted])):
        # seqeval gives NaN for the mean over no types; the project gives 0.
        assert np.isnan(expected["f1_macro"])
        expected["f1_macro"] = 0.0
    assert entity_scores(expected_tags, predicted) == pytest.approx(expected, abs=1e-12)


def _random_tags(random: np.random.Generator, lengths: list[int], tags) -> list[list[str]]:
    return [random.choice(tags, size=length).tolist() for length in lengths]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_scores_equal_seqevals_on_random_taggings() -> None:
    random = np.random.default_rng(1)
    for number in range(1000):
        lengths = random.integers(1, 12, random.integers(1, 5)).tolist()
        # Few distinct tags make matches likely. Half of the cases mix the prefixes of all schemes.
        tags = TAGS if number % 2 else ("O", "B-PER", "I-PER", "I-LOC")
        expected_tags = _random_tags(random, lengths, tags)
        noise = _random_tags(random, lengths, tags)
        predicted = [
            [
                tag if random.random() < 0.7 else random_tag
                for tag, random_tag in zip(*pair, strict=True)
            ]
            for pair in zip(expected_tags, noise, strict=True)
        ]
        _assert_seqeval_scores(expected_tags, predicted)


@pytest.mark.peers
@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "folder"), [("weibo_ner", "data/zh/tasks/weibo_ner"), ("wnut17", "data/en/wnut17")]
)
def test_scores_equal_seqevals_on_real_files(task: str, folder: str) -> None:
    spec, random = tasks.load_task(task), np.random.default_rng(2)
    for split in ("train", "dev", "test"):
        examples = read_split(spec, SHARED / folder, split).examples
        expected_tags = [list(example.label) for example in examples]
        assert entity_scores(expected_tags, expected_tags)["f1"] == 1.0
        noise = _random_tags(random, [len(tags) for tags in expected_tags], spec.labels)
        predicted = [
            [
                tag if random.random() < 0.9 else random_tag
                for tag, random_tag in zip(*pair, strict=True)
            ]
            for pair in zip(expected_tags, noise, strict=True)
        ]
        _assert_seqeval_scores(expected_tags, predicted)
