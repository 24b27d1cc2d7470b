"""Directories of `sentence-transformers`: supported and refused layouts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.records import POOLINGS
from pipeline.base.errors import InputError
from pipeline.base.location import LocalLocation
from tools.sentence_layout import (
    PoolingSettings,
    SentenceLayout,
    choose_layout,
    read_layout,
    write_layout,
)

_LAYOUTS = st.builds(
    SentenceLayout,
    pooling=st.sampled_from(POOLINGS),
    normalize=st.booleans(),
    max_seq_length=st.integers(3, 512),
    lower_case=st.booleans(),
)


@given(layout=_LAYOUTS)
def test_written_layout_is_read_back(tmp_path_factory, layout: SentenceLayout) -> None:
    folder = tmp_path_factory.mktemp("model")
    write_layout(folder, layout, 8)
    assert read_layout(folder) == layout


def test_written_files_equal_those_of_the_library(tmp_path) -> None:
    write_layout(tmp_path, SentenceLayout("cls", True, 64), 8)
    assert json.loads((tmp_path / "modules.json").read_text()) == [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
        {
            "idx": 2,
            "name": "2",
            "path": "2_Normalize",
            "type": "sentence_transformers.models.Normalize",
        },
    ]
    assert json.loads((tmp_path / "1_Pooling/config.json").read_text()) == {
        "word_embedding_dimension": 8,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }


def _write(folder: LocalLocation, pooling: object, types: str = "Transformer Pooling") -> None:
    modules = [
        {"type": f"a.b.{name}", "path": f"{index}_{name}" if index else ""}
        for index, name in enumerate(types.split())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_older_and_newer_files_are_read(tmp_path, pooling: object, expected: str) -> None:
    _write(tmp_path, pooling)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 96}')
    assert read_layout(tmp_path) == SentenceLayout(expected, False, 96)


@pytest.mark.parametrize(
    ("pooling", "types", "received"),
    [
        ({"pooling_mode": "max"}, "Transformer Pooling", "'max'"),
        ({"pooling_mode": ["mean", "cls"]}, "Transformer Pooling", "'mean', 'cls'"),
        ({"pooling_mode_max_tokens": True}, "Transformer Pooling", "'pooling_mode_max_tokens'"),
        ({}, "Transformer Pooling", "none"),
        ({"pooling_mode": 3}, "Transformer Pooling", "3"),
        ({"pooling_mode": "cls"}, "Transformer Pooling Dense", "a.b.Dense"),
        ({"pooling_mode": "cls"}, "WordEmbeddings Pooling", "a.b.WordEmbeddings"),
    ],
)
def test_unsupported_layouts_are_refused_without_complete_settings(
    tmp_path, pooling: object, types: str, received: str
) -> None:
    _write(tmp_path, pooling, types)
    with pytest.raises(InputError) as caught:
        choose_layout(tmp_path, PoolingSettings(pooling="cls"))
    assert received in caught.value.received
    chosen = choose_layout(tmp_path, PoolingSettings(pooling="cls", normalize=False))
    assert chosen == SentenceLayout("cls", False)


def test_default_prompt_is_refused(tmp_path) -> None:
    _write(tmp_path, {"pooling_mode": "cls"})
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text('{"prompts": {"query": "q: "}, "default_prompt_name": "query"}')
    with pytest.raises(InputError) as caught:
        read_layout(tmp_path)
    assert caught.value.subject == str(path)


@pytest.mark.parametrize("folder", ["..", "", "/etc", "a/b"])
def test_pooling_path_outside_the_directory_is_refused(tmp_path, folder: str) -> None:
    modules = [{"type": "Transformer"}, {"type": "Pooling", "path": folder}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError) as caught:
        read_layout(tmp_path)
    assert caught.value.subject == str(tmp_path / "modules.json")


def test_settings_override_files_and_files_override_training(tmp_path) -> None:
    assert choose_layout(tmp_path, PoolingSettings()) == SentenceLayout("mean", False)
    (tmp_path / "request.json").write_text('{"embedding_pooling": "cls"}')
    assert choose_layout(tmp_path, PoolingSettings()) == SentenceLayout("cls", False)
    write_layout(tmp_path, SentenceLayout("mean", True, 7), 8)
    assert choose_layout(tmp_path, PoolingSettings()) == SentenceLayout("mean", True, 7)
    changed = choose_layout(tmp_path, PoolingSettings(normalize=False))
    assert changed == SentenceLayout("mean", False, 7)
