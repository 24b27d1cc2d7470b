"""Id and commit of models of the hub, as manifests, run configurations and model cards have them.

They are read from a model's folder in the hub's cache, so that no hub is asked here.
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
    """The teacher in the hub's cache; read only."""
    folder = tmp_path_factory.mktemp("hub") / "models--org--name" / "snapshots" / COMMIT
    shutil.copytree(teacher_dir, folder)
    return folder


@pytest.fixture(scope="module")
def hub_cache_dir(tmp_path_factory, examples_dir, snapshot_dir) -> pathlib.Path:
    """A teacher cache of the teacher from the hub; read only."""
    return make_cache(tmp_path_factory.mktemp("cache") / "hub", examples_dir, snapshot_dir)


def test_a_cache_differs_by_the_teachers_id_alone(hub_cache_dir, cache_dir) -> None:
    files, expected = read_folder(hub_cache_dir), read_folder(cache_dir)
    manifest, other = (json.loads(found.pop("manifest.json")) for found in (files, expected))
    del files[manifests.CHECKSUM_FILE], expected[manifests.CHECKSUM_FILE]
    assert manifest["teacher"].pop("hub") == HUB
    assert manifest == other
    assert files == expected
    assert manifests.load(hub_cache_dir).teacher_info.teacher["hub"] == HUB


def test_the_summary_names_the_teacher(hub_cache_dir, cache_dir) -> None:
    lines, expected = (
        list(summary.describe(manifests.load(folder))) for folder in (hub_cache_dir, cache_dir)
    )
    changed = [(one, two) for one, two in zip(lines, expected, strict=True) if one != two]
    (pair,) = changed
    assert pair[1].startswith("teacher ") and pair[0] == f"{pair[1]}, {NAMED}"


def test_a_run_goes_on_with_the_same_teacher_from_elsewhere(
    hub_cache_dir, cache_dir, examples_dir, teacher_dir, snapshot_dir, tmp_path
) -> None:
    for begun, teacher, has_id in (
        (hub_cache_dir, teacher_dir, False),
        (cache_dir, snapshot_dir, True),
    ):
        folder = tmp_path / begun.name
        shutil.copytree(begun, folder)
        (folder / manifests.MANIFEST_FILE).unlink()
        next(folder.glob("train-*.tfrecord")).unlink()
        make_cache(folder, examples_dir, teacher)
        made = manifests.load(folder)
        assert made.splits == manifests.load(begun).splits
        assert ("hub" in made.teacher_info.teacher) == has_id


def test_a_repair_with_the_same_teacher_from_elsewhere_keeps_its_id(
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
def test_a_manifest_with_another_id_is_refused(hub_cache_dir, tmp_path, hub: object) -> None:
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


def test_a_students_card_names_start_and_teacher(
    hub_cache_dir, snapshot_dir, teacher_dir, tmp_path
) -> None:
    folder = tmp_path / "student"
    assert _distill(hub_cache_dir, snapshot_dir, folder) == 0
    assert (folder / manifests.REQUEST_FILE).read_json()["hub"] == {"init_from": HUB}
    origin = find_origin(folder, manifests.load(hub_cache_dir))
    card = model_card(find_model(folder).config, CardSettings("tiny"), origin)
    sha256 = find_model(teacher_dir).sha256()
    assert f"| started from | layers 0, 2 of a model `{NAMED}` with SHA-256 `{sha256}` |" in card
    assert f"| teacher | `{NAMED}`, BERT of " in card
    assert origin.teacher.id == "org/name"
    # The same run with the same weights from elsewhere.
    assert _distill(hub_cache_dir, teacher_dir, folder) == 0


def test_a_card_names_a_live_teacher(cache_dir) -> None:
    sources = {"teacher": manifests.HubSource(**HUB)}
    origin = Origin({"teacher": "abc"}, manifests.load(cache_dir), {}, sources)
    assert str(origin.teacher) == NAMED
    assert Origin({}, manifests.load(cache_dir), {}).teacher is None


def test_settings_tell_the_models_of_the_hub_among_them(snapshot_dir, teacher_dir) -> None:
    config = FinetuneConfig("task", "data", snapshot_dir, "runs", finetune_teacher=teacher_dir)
    assert config.hub_models() == {"model": HUB}
    config = dataclasses.replace(config, model=teacher_dir, finetune_teacher=snapshot_dir)
    assert config.hub_models() == {"finetune_teacher": HUB}


def test_tables_call_a_model_by_its_id(snapshot_dir, teacher_dir) -> None:
    config = benchmark_inference.BenchmarkConfig((teacher_dir, snapshot_dir), seq_length=16)
    names = [model.name for model in benchmark_inference.find_models(config)]
    assert names == [teacher_dir.name, "org/name"]
