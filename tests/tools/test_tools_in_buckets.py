"""The tools on objects in a bucket: the same output and files as on a local disk."""

import json
import pathlib
import re

import pytest

from pipeline.base.location import BucketLocation
from tests.conftest import read_folder, read_objects, upload_folder
from tools import (
    convert_checkpoint,
    fidelity_report,
    finetune,
    inspect_cache,
    merge_caches,
    plan_cache,
    quickstart,
    reduce_vocabulary,
    verify_cache,
)
from tools.report import __main__ as report


def _run(capsys, tool, **settings: object) -> str:
    """Runs a tool, which must succeed, and returns what it prints."""
    capsys.readouterr()
    status = tool.main(["tool", *(f"--{name}={value}" for name, value in settings.items())])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


@pytest.fixture
def bucket_and_disk(bucket, tmp_path, cache_dir, teacher_dir) -> tuple[dict, dict]:
    """Paths of a cache, its teacher and the output: in a bucket and on the local disk."""
    in_bucket = {
        "cache": upload_folder(cache_dir, bucket / "cache"),
        "teacher": upload_folder(teacher_dir, bucket / "teacher"),
        "out": bucket / "out",
    }
    return in_bucket, {"cache": cache_dir, "teacher": teacher_dir, "out": tmp_path / "out"}


def _written(folder: BucketLocation | pathlib.Path) -> dict[str, bytes]:
    return read_folder(folder) if isinstance(folder, pathlib.Path) else read_objects(folder)


def test_inspect_cache_prints_the_same_for_a_bucket(capsys, bucket_and_disk) -> None:
    printed_words = []
    for paths in bucket_and_disk:
        paths["out"].mkdir(exist_ok=True)
        page = paths["out"] / "page.html"
        out = _run(capsys, inspect_cache, input_dir=paths["cache"], examples=2, html=page)
        # Line breaks depend on the length of paths, so words are compared.
        printed_words.append(
            out.replace(str(paths["cache"]), "CACHE").replace(str(page), "PAGE").split()
        )
        assert page.read_bytes().startswith(b"<!DOCTYPE html>")
    assert printed_words[0] == printed_words[1]


@pytest.mark.parametrize("layout", ["hf", "tf1"])
def test_converted_model_in_a_bucket_has_the_same_bytes(
    capsys, bucket_and_disk, layout: str
) -> None:
    for paths in bucket_and_disk:
        out = paths["out"] / layout
        _run(capsys, convert_checkpoint, input=paths["teacher"], output_dir=out, layout=layout)
    written = [_written(paths["out"]) for paths in bucket_and_disk]
    assert written[0] == written[1] and f"{layout}/vocab.txt" in written[0]
    capsys.readouterr()
    flags = [
        f"--input={bucket_and_disk[0]['teacher']}",
        f"--output_dir={bucket_and_disk[0]['out'] / layout}",
    ]
    assert convert_checkpoint.main(["tool", *flags, f"--layout={layout}"]) == 1
    assert "expected a new or an empty folder" in capsys.readouterr().err


def test_merged_cache_in_a_bucket_has_the_same_bytes(
    capsys, bucket_and_disk, bucket, other_cache_dir, merged_dir
) -> None:
    in_bucket, _ = bucket_and_disk
    other_cache = upload_folder(other_cache_dir, bucket / "other")
    settings = {"input_dirs": f"{in_bucket['cache']},{other_cache}", "weights": "3,1"}
    _run(capsys, merge_caches, output_dir=in_bucket["out"], **settings)
    assert read_objects(in_bucket["out"]) == read_folder(merged_dir)


def test_reduced_student_in_a_bucket_has_the_same_bytes(capsys, bucket_and_disk) -> None:
    names = {"input_dir": "cache", "teacher": "teacher", "output_dir": "out"}
    for paths in bucket_and_disk:
        flags = {name: paths[key] for name, key in names.items()}
        _run(capsys, reduce_vocabulary, coverage=0.9, student_layers=1, **flags)
    written = [_written(paths["out"]) for paths in bucket_and_disk]
    assert written[0] == written[1] and "model.safetensors" in written[0]


def test_plan_fidelity_and_report_are_written_to_a_bucket(
    capsys, bucket_and_disk, bucket, examples_dir
) -> None:
    in_bucket, _ = bucket_and_disk
    examples = upload_folder(examples_dir, bucket / "examples")
    common = {"teacher": in_bucket["teacher"], "sample": 16, "predict_batch_size": 8}
    plan, fidelity = in_bucket["out"] / "plan.json", in_bucket["out"] / "fidelity.json"
    sizes = {"truncation_factors": 4, "logit_encodings": "float16"}
    _run(capsys, plan_cache, input_dir=examples, output=plan, **sizes, **common)
    _run(capsys, fidelity_report, input_dir=in_bucket["cache"], output=fidelity, **common)
    assert json.loads(fidelity.read_bytes())["num_examples"] == 16
    page = in_bucket["out"] / "report.html"
    _run(capsys, report, plan=plan, fidelity=fidelity, caches=in_bucket["cache"], output=page)
    assert page.read_bytes().startswith(b"<!DOCTYPE html>")


def test_broken_cache_in_a_bucket_is_verified_and_repaired(
    capsys, bucket_and_disk, bucket, cache_dir, examples_dir
) -> None:
    in_bucket, _ = bucket_and_disk
    cache, file = bucket / "cache", "train-00001-of-00003.tfrecord"
    content = (cache / file).read_bytes()
    (cache / file).write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    (cache / "vocab.txt").unlink()
    assert verify_cache.main(["tool", f"--input_dir={cache}"]) == 1
    captured = capsys.readouterr()
    assert f"{file}: expected SHA-256 " in captured.out
    assert "2 files are broken (tokenizer, train-00001-of-00003.tfrecord)" in captured.err
    examples = upload_folder(examples_dir, bucket / "examples")
    settings = {"repair": True, "teacher": in_bucket["teacher"], "examples": examples}
    printed = _run(capsys, verify_cache, input_dir=cache, **settings)
    assert f"{file}: renamed to {file}.broken" in printed
    assert f"{file}: made again, the same bytes" in printed
    objects = read_objects(cache)
    assert len(objects.pop(f"{file}.broken")) == len(content)
    assert objects.pop(f".{file}.json.broken") == objects[f".{file}.json"]
    assert objects == read_folder(cache_dir)
    assert f"no problems found: {cache}" in _run(capsys, verify_cache, input_dir=cache)


@pytest.mark.long
def test_fine_tuning_in_a_bucket_writes_the_same_bytes(
    capsys, bucket_and_disk, bucket, tmp_path, sentiment_dir, model_dir
) -> None:
    on_disk = {"data_dir": sentiment_dir, "model": model_dir, "output_dir": tmp_path / "runs"}
    in_bucket = {
        "data_dir": upload_folder(sentiment_dir, bucket / "data"),
        "model": upload_folder(model_dir, bucket / model_dir.name),
        "output_dir": bucket / "runs",
    }
    settings = {"task": "chnsenticorp", "num_train_epochs": 1, "learning_rates": "2e-3"}
    settings |= {"train_batch_size": 16, "max_seq_length": 48, "compute_dtype": "float32"}
    printed = [_run(capsys, finetune, **settings, **paths) for paths in (in_bucket, on_disk)]
    assert printed[0].replace(str(bucket), str(tmp_path)) == printed[1]
    # Finished runs are read instead of repeated.
    assert _run(capsys, finetune, **settings, **in_bucket) == printed[0]
    objects, expected = read_objects(in_bucket["output_dir"]), read_folder(on_disk["output_dir"])
    run = "lr-0.002_seed-1"
    for name in (f"{run}/model/model.safetensors", f"{run}/predictions/dev/ChnSentiCorp.tsv"):
        assert objects[name] == expected[name]
    timed = re.compile(r"tensorboard/|metrics\.json|summary\.json")
    reproducible_files = [name for name in expected if not timed.search(name)]
    assert {name: objects[name] for name in reproducible_files} == {
        name: expected[name] for name in reproducible_files
    }


def test_quickstart_refuses_a_bucket_as_work_folder(capsys) -> None:
    assert quickstart.main(["tool", "--work=s3://bucket/work"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --work: ") and "s3://bucket/work" in error
