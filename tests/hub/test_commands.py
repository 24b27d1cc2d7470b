"""Tests of the commands and the Python API with models of a local hub."""

import pathlib

import pytest

from pipeline.storage import manifest as manifests
from tests.conftest import read_folder


@pytest.fixture
def commit(hub, bert_files) -> str:
    """The commit of the BERT org/name on the hub, with the tag v1."""
    commit = hub.add("org/name", bert_files)
    hub.repositories["org/name"].references["v1"] = commit
    return commit


def _run(client, command: str, **settings: object) -> str:
    flags = [f"--{name}={value}" for name, value in settings.items()]
    status, output, errors = client.run("-m", command, *flags)
    assert status == 0, errors
    return output


@pytest.mark.long
def test_stages_write_the_same_shards_for_a_models_id_as_for_its_directory(
    client, hub, commit, corpus_dir, examples_dir, cache_dir, tmp_path
) -> None:
    examples, cache = tmp_path / "examples", tmp_path / "cache"
    _run(
        client,
        "pipeline.create_pretraining_data",
        input_dir=corpus_dir,
        vocab_file="org/name",
        output_dir=examples,
        max_seq_length=48,
        max_predictions_per_seq=8,
        doc_stride=30,
        dupe_factor=2,
        eval_fraction=0.2,
        num_shards=3,
        max_workers=2,
    )
    assert not {"model.safetensors"} & set(hub.downloaded())
    shards = [shard.file for shard in manifests.load(examples_dir).shards]
    files, expected = read_folder(examples), read_folder(examples_dir)
    assert {name: files[name] for name in shards} == {name: expected[name] for name in shards}
    _run(
        client,
        "pipeline.create_teacher_output_data",
        input_dir=examples_dir,
        teacher="hf://org/name@v1",
        output_dir=cache,
        truncation_factor=16,
        predict_batch_size=8,
    )
    manifest, expected_manifest = manifests.load(cache), manifests.load(cache_dir)
    teacher = manifest.teacher_info.teacher
    assert teacher["hub"] == {"id": "org/name", "commit": commit}
    assert teacher["sha256"] == expected_manifest.teacher_info.teacher["sha256"]
    assert manifest.splits == expected_manifest.splits
    assert "flax_model.msgpack" not in hub.downloaded()


@pytest.mark.long
def test_load_model_accepts_a_model_of_the_hub(client, commit, teacher_dir) -> None:
    code = (
        "from pipeline import api\n"
        "try:\n    api.load_model('org/none')\nexcept api.InputError as error:\n"
        "    print(error.subject)\n"
        "print(api.load_model('org/name@v1').count_params())"
    )
    client.environment["KERAS_BACKEND"] = "jax"
    status, output, errors = client.run("-c", code)
    assert status == 0, errors
    subject, count = output.split()
    from pipeline import api

    assert subject == "org/none"
    assert int(count) == api.load_model(str(teacher_dir)).count_params()


def test_another_host_downloads_the_same_commit_into_its_own_cache(client, hub, commit) -> None:
    hub.commit("org/name", {})
    code = (
        "from pipeline.hub import models\n"
        "from pipeline.teacher.settings import TeacherCacheConfig\n"
        f"teacher = '/other/models--org--name/snapshots/{commit}'\n"
        "config = TeacherCacheConfig('cache', 'examples', teacher=teacher).absolute()\n"
        "print(models.relocate_to_host(config).teacher)"
    )
    status, output, errors = client.run("-c", code)
    assert status == 0, errors
    folder = pathlib.Path(output.strip())
    assert folder.is_relative_to(client.home) and folder.name == commit
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("pipeline.create_pretraining_data", "--vocab_file=org/none --input_dir=x"),
        ("pipeline.create_teacher_output_data", "--teacher=org/none --input_dir=x"),
        ("pipeline.run_distill", "--init_from=org/none --student_layers=1 --input_dir=x"),
        ("tools.finetune", "--model=org/none --task=x --data_dir=x"),
        ("tools.benchmark_inference", "--models=org/none"),
    ],
)
def test_error_for_a_missing_model_is_one_line_with_its_flag(
    client, hub, command: str, flags: str
) -> None:
    flags = flags if "--models" in flags else f"{flags} --output_dir=y"
    status, output, errors = client.run("-m", command, *flags.split())
    flag = flags.partition("=org/none")[0]
    (line,) = errors.splitlines()
    assert status == 1 and output == ""
    assert line.startswith(f"error: {flag}: org/none: ") and hub.url in line


def test_other_errors_are_reported_before_a_request_to_the_hub(client, hub, commit) -> None:
    for flags in (
        "--teacher=org/name --input_dir=x --output_dir=y --num_tasks=1 --task_index=1",
        "--teacher=org/name --input_dir=x --output_dir=y --bert_config_file=z",
        "--teacher=org/name --input_dir=x",
    ):
        status, _, errors = client.run("-m", "pipeline.create_teacher_output_data", *flags.split())
        assert status == 1 and errors.startswith("error: ")
    status, _, errors = client.run(
        "-m", "pipeline.run_distill", "--student=org/name", "--losses=x=1", "--output_dir=y"
    )
    assert status == 1 and errors.startswith("error: --losses")
    assert hub.requests == []
