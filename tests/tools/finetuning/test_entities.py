"""Entities of tags and their scores: by hand, by their definition, and as seqeval has them."""

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
        # IOB1: I- begins an entity unless it continues one of its type.
        ("I-X I-X O I-Y", [("X", 0, 1), ("Y", 3, 3)]),
        ("I-X I-Y B-Y I-Y", [("X", 0, 0), ("Y", 1, 1), ("Y", 2, 3)]),
        ("B-X I-Y", [("X", 0, 0), ("Y", 1, 1)]),
        ("B-X I-X E-X S-X", [("X", 0, 2), ("X", 3, 3)]),
        ("E-X E-X I-X", [("X", 0, 0), ("X", 1, 1), ("X", 2, 2)]),
        ("S-X I-X E-X", [("X", 0, 0), ("X", 1, 2)]),
        ("B-a-b I-a-b", [("a-b", 0, 1)]),
    ],
)
def test_entities_of_tags(tags: str, entities: list) -> None:
    assert find_entities(tags.split()) == entities


@st.composite
def _sentences(draw) -> tuple[list[tuple[str, int, int]], int]:
    entities, place = [], 0
    for gap, length, name in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from("XY")), max_size=6)
    ):
        place += gap
        entities.append((name, place, place + length - 1))
        place += length
    return entities, place + draw(st.integers(0, 2))


@given(_sentences(), st.sampled_from(tuple(tasks.SCHEMES)))
def test_entities_survive_their_tags(sentence, scheme: str) -> None:
    entities, num_words = sentence
    tags = tag_entities(entities, num_words, scheme)
    assert len(tags) == num_words and all(tasks.is_tag(tag, scheme) for tag in tags)
    assert find_entities(tags) == entities


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_hold_each_tagged_word_once(tags: list[str]) -> None:
    entities = find_entities(tags)
    inside = [place for _, first, last in entities for place in range(first, last + 1)]
    assert inside == [place for place, tag in enumerate(tags) if tag != "O"]
    for name, first, last in entities:
        assert {tag.partition("-")[2] for tag in tags[first : last + 1]} == {name}


def test_scores_by_hand() -> None:
    """Of three entities two are predicted, one of them with another end."""
    right = [["B-X", "I-X", "O"], ["B-Y", "O", "B-X"]]
    predicted = [["B-X", "O", "O"], ["B-Y", "O", "O"]]
    scores = entity_scores(right, predicted)
    assert scores == pytest.approx(
        # Y is right, X is not.
        {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "f1_macro": 1 / 2}
    )


def test_scores_without_entities_are_0() -> None:
    none = [["O", "O"]]
    assert set(entity_scores(none, none).values()) == {0.0}
    assert entity_scores([["B-X", "O"]], none)["f1"] == 0.0
    assert entity_scores(none, [["B-X", "O"]])["precision"] == 0.0


def _assert_seqevals(right: list[list[str]], predicted: list[list[str]]) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    expected = {
        "precision": metrics.precision_score(right, predicted, zero_division=0),
        "recall": metrics.recall_score(right, predicted, zero_division=0),
        "f1": metrics.f1_score(right, predicted, zero_division=0),
        "f1_macro": metrics.f1_score(right, predicted, zero_division=0, average="macro"),
    }
    if not any(map(find_entities, [*right, *predicted])):
        # The mean over no types is no number there, and 0 here as the others are.
        assert np.isnan(expected["f1_macro"])
        expected["f1_macro"] = 0.0
    assert entity_scores(right, predicted) == pytest.approx(expected, abs=1e-12)


def _random_tags(random: np.random.Generator, lengths: list[int], tags) -> list[list[str]]:
    return [random.choice(tags, size=length).tolist() for length in lengths]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_scores_are_seqevals_on_a_thousand_random_taggings() -> None:
    random = np.random.default_rng(1)
    for number in range(1000):
        lengths = random.integers(1, 12, random.integers(1, 5)).tolist()
        # Few tags, so that entities are hit; all schemes and none.
        tags = TAGS if number % 2 else ("O", "B-PER", "I-PER", "I-LOC")
        right = _random_tags(random, lengths, tags)
        noise = _random_tags(random, lengths, tags)
        predicted = [
            [tag if random.random() < 0.7 else other for tag, other in zip(*pair, strict=True)]
            for pair in zip(right, noise, strict=True)
        ]
        _assert_seqevals(right, predicted)


@pytest.mark.peers
@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "folder"), [("weibo_ner", "data/zh/tasks/weibo_ner"), ("wnut17", "data/en/wnut17")]
)
def test_scores_are_seqevals_on_real_files(task: str, folder: str) -> None:
    spec, random = tasks.load_task(task), np.random.default_rng(2)
    for split in ("train", "dev", "test"):
        examples = read_split(spec, SHARED / folder, split).examples
        right = [list(example.label) for example in examples]
        assert entity_scores(right, right)["f1"] == 1.0
        noise = _random_tags(random, [len(tags) for tags in right], spec.labels)
        predicted = [
            [tag if random.random() < 0.9 else other for tag, other in zip(*pair, strict=True)]
            for pair in zip(right, noise, strict=True)
        ]
        _assert_seqevals(right, predicted)
