"""Tests that manifests, run configurations and model cards record a hub model's id and commit.

Both are read from the model's folder in the hub's cache, so these tests need no hub.
"""

import dataclasses
import json
import pathlib
import shutil

import pytest

from pipeline import run_distill
from pipeline.base.errors import InputError
from pipeline.models.formats.model_directory import find_model
from pipeline.storage import manifest as manifests
from pipeline.teacher import summary
from tests.conftest import make_cache, read_folder
from tools import benchmark_inference
from tools.exports.formats import CardSettings
from tools.exports.model_card import Origin, find_origin, model_card
from tools.finetuning.settings import FinetuneConfig
from tools.verification import repair

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {"id": "org/name", "commit": COMMIT}
NAMED = f"org/name@{COMMIT}"


@pytest.fixture(scope="module")
def snapshot_dir(tmp_path_factory, teacher_dir) -> pathlib.Path:
    """The teacher in the hub's cache. Tests must not change it."""
    folder = tmp_path_factory.mktemp("hub") / "models--org--name" / "snapshots" / COMMIT
    shutil.copytree(teacher_dir, folder)
    return folder


@pytest.fixture(scope="module")
def hub_cache_dir(tmp_path_factory, examples_dir, snapshot_dir) -> pathlib.Path:
    """A teacher cache of the teacher from the hub. Tests must not change it."""
    return make_cache(tmp_path_factory.mktemp("cache") / "hub", examples_dir, snapshot_dir)


def test_teacher_cache_of_a_hub_model_differs_only_by_its_id(hub_cache_dir, cache_dir) -> None:
    files, expected = read_folder(hub_cache_dir), read_folder(cache_dir)
    manifest = json.loads(files.pop("manifest.json"))
    expected_manifest = json.loads(expected.pop("manifest.json"))
    del files[manifests.CHECKSUM_FILE], expected[manifests.CHECKSUM_FILE]
    assert manifest["teacher"].pop("hub") == HUB
    assert manifest == expected_manifest
    assert files == expected
    assert manifests.load(hub_cache_dir).teacher_info.teacher["hub"] == HUB


def test_summary_names_the_hub_model_of_the_teacher(hub_cache_dir, cache_dir) -> None:
    lines, expected = (
        list(summary.describe(manifests.load(folder))) for folder in (hub_cache_dir, cache_dir)
    )
    pairs = zip(lines, expected, strict=True)
    ((line, expected_line),) = [pair for pair in pairs if pair[0] != pair[1]]
    assert expected_line.startswith("teacher ") and line == f"{expected_line}, {NAMED}"


def test_run_is_resumed_with_the_same_teacher_from_another_folder(
    hub_cache_dir, cache_dir, examples_dir, teacher_dir, snapshot_dir, tmp_path
) -> None:
    for cache, teacher, has_id in (
        (hub_cache_dir, teacher_dir, False),
        (cache_dir, snapshot_dir, True),
    ):
        folder = tmp_path / cache.name
        shutil.copytree(cache, folder)
        (folder / manifests.MANIFEST_FILE).unlink()
        next(folder.glob("train-*.tfrecord")).unlink()
        make_cache(folder, examples_dir, teacher)
        manifest = manifests.load(folder)
        assert manifest.splits == manifests.load(cache).splits
        assert ("hub" in manifest.teacher_info.teacher) == has_id


def test_repair_with_the_same_teacher_from_another_folder_keeps_its_id(
    hub_cache_dir, examples_dir, teacher_dir
) -> None:
    manifest = manifests.load(hub_cache_dir)
    config = repair.recorded_config(
        hub_cache_dir, manifest, teacher=teacher_dir, examples=examples_dir
    )
    inputs = repair.open_inputs(config, manifest, find_model(teacher_dir))
    assert inputs.hub == HUB
    assert inputs.teacher_info.teacher["hub"] == HUB


@pytest.mark.parametrize(
    "hub", [{"id": "a b", "commit": COMMIT}, {"id": "a"}, "a", {**HUB, "id": 1}]
)
def test_manifest_with_a_malformed_id_is_refused(hub_cache_dir, tmp_path, hub: object) -> None:
    value = json.loads((hub_cache_dir / manifests.MANIFEST_FILE).read_text())
    value["teacher"]["hub"] = hub
    (tmp_path / manifests.MANIFEST_FILE).write_text(json.dumps(value))
    with pytest.raises(InputError) as caught:
        manifests.load(tmp_path)
    assert "hub" in caught.value.subject or "hub" in str(caught.value.received)


def _distill(cache: pathlib.Path, start: pathlib.Path, folder: pathlib.Path) -> int:
    flags = (
        f"--input_dir={cache} --init_from={start} --student_layers=2 --num_train_steps=2 "
        f"--train_batch_size=4 --max_eval_steps=1 --output_dir={folder}"
    )
    return run_distill.main(["run_distill", *flags.split()])


@pytest.mark.long
def test_model_card_of_a_student_names_start_and_teacher(
    hub_cache_dir, snapshot_dir, teacher_dir, tmp_path
) -> None:
    folder = tmp_path / "student"
    assert _distill(hub_cache_dir, snapshot_dir, folder) == 0
    assert (folder / manifests.RUN_CONFIG_FILE).read_json()["hub"] == {"init_from": HUB}
    origin = find_origin(folder, manifests.load(hub_cache_dir))
    card = model_card(find_model(folder).config, CardSettings("tiny"), origin)
    sha256 = find_model(teacher_dir).sha256()
    assert f"| initial weights | layers 0, 2 of a model `{NAMED}` with SHA-256 `{sha256}` |" in card
    assert f"| teacher | `{NAMED}`, BERT of " in card
    assert origin.teacher.id == "org/name"
    # The run is the same with the same weights from another folder.
    assert _distill(hub_cache_dir, teacher_dir, folder) == 0


def test_model_card_names_a_live_teacher(cache_dir) -> None:
    sources = {"teacher": manifests.HubSource(**HUB)}
    origin = Origin({"teacher": "abc"}, manifests.load(cache_dir), {}, sources)
    assert str(origin.teacher) == NAMED
    assert Origin({}, manifests.load(cache_dir), {}).teacher is None


def test_hub_models_returns_the_settings_that_name_hub_models(snapshot_dir, teacher_dir) -> None:
    config = FinetuneConfig("task", "data", snapshot_dir, "runs", finetune_teacher=teacher_dir)
    assert config.hub_models() == {"model": HUB}
    config = dataclasses.replace(config, model=teacher_dir, finetune_teacher=snapshot_dir)
    assert config.hub_models() == {"finetune_teacher": HUB}


def test_benchmark_tables_name_a_hub_model_by_its_id(snapshot_dir, teacher_dir) -> None:
    config = benchmark_inference.BenchmarkConfig((teacher_dir, snapshot_dir), seq_length=16)
    names = [model.name for model in benchmark_inference.find_models(config)]
    assert names == [teacher_dir.name, "org/name"]
