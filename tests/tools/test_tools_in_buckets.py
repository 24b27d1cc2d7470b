"""The tools on objects in a bucket print and write what they do with files of this machine."""

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
def places(bucket, tmp_path, cache_dir, teacher_dir) -> tuple[dict, dict]:
    """Where a cache and its teacher are and where output goes: in a bucket, and here."""
    there = {
        "cache": upload_folder(cache_dir, bucket / "cache"),
        "teacher": upload_folder(teacher_dir, bucket / "teacher"),
        "out": bucket / "out",
    }
    return there, {"cache": cache_dir, "teacher": teacher_dir, "out": tmp_path / "out"}


def _written(place: BucketLocation | pathlib.Path) -> dict[str, bytes]:
    return read_folder(place) if isinstance(place, pathlib.Path) else read_objects(place)


def test_inspection(capsys, places) -> None:
    said = []
    for place in places:
        place["out"].mkdir(exist_ok=True)
        page = place["out"] / "page.html"
        out = _run(capsys, inspect_cache, input_dir=place["cache"], examples=2, html=page)
        # Lines are as long as they are with the names in them.
        said.append(out.replace(str(place["cache"]), "CACHE").replace(str(page), "PAGE").split())
        assert page.read_bytes().startswith(b"<!DOCTYPE html>")
    assert said[0] == said[1]


@pytest.mark.parametrize("layout", ["hf", "tf1"])
def test_conversion(capsys, places, layout: str) -> None:
    for place in places:
        out = place["out"] / layout
        _run(capsys, convert_checkpoint, input=place["teacher"], output_dir=out, layout=layout)
    written = [_written(place["out"]) for place in places]
    assert written[0] == written[1] and f"{layout}/vocab.txt" in written[0]
    capsys.readouterr()
    flags = [f"--input={places[0]['teacher']}", f"--output_dir={places[0]['out'] / layout}"]
    assert convert_checkpoint.main(["tool", *flags, f"--layout={layout}"]) == 1
    assert "expected a new or an empty folder" in capsys.readouterr().err


def test_merging(capsys, places, bucket, other_cache_dir, merged_dir) -> None:
    there, _ = places
    other = upload_folder(other_cache_dir, bucket / "other")
    settings = {"input_dirs": f"{there['cache']},{other}", "weights": "3,1"}
    _run(capsys, merge_caches, output_dir=there["out"], **settings)
    assert read_objects(there["out"]) == read_folder(merged_dir)


def test_fewer_tokens(capsys, places) -> None:
    names = {"input_dir": "cache", "teacher": "teacher", "output_dir": "out"}
    for place in places:
        paths = {name: place[key] for name, key in names.items()}
        _run(capsys, reduce_vocabulary, coverage=0.9, student_layers=1, **paths)
    written = [_written(place["out"]) for place in places]
    assert written[0] == written[1] and "model.safetensors" in written[0]


def test_plan_and_fidelity(capsys, places, bucket, examples_dir) -> None:
    there, _ = places
    examples = upload_folder(examples_dir, bucket / "examples")
    common = {"teacher": there["teacher"], "sample": 16, "predict_batch_size": 8}
    plan, fidelity = there["out"] / "plan.json", there["out"] / "fidelity.json"
    sizes = {"truncation_factors": 4, "logit_encodings": "float16"}
    _run(capsys, plan_cache, input_dir=examples, output=plan, **sizes, **common)
    _run(capsys, fidelity_report, input_dir=there["cache"], output=fidelity, **common)
    assert json.loads(fidelity.read_bytes())["num_examples"] == 16
    page = there["out"] / "report.html"
    _run(capsys, report, plan=plan, fidelity=fidelity, caches=there["cache"], output=page)
    assert page.read_bytes().startswith(b"<!DOCTYPE html>")


def test_verification_and_repair(capsys, places, bucket, cache_dir, examples_dir) -> None:
    there, _ = places
    cache, file = bucket / "cache", "train-00001-of-00003.tfrecord"
    content = (cache / file).read_bytes()
    (cache / file).write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    (cache / "vocab.txt").unlink()
    assert verify_cache.main(["tool", f"--input_dir={cache}"]) == 1
    captured = capsys.readouterr()
    assert f"{file}: expected SHA-256 " in captured.out
    assert "2 files are broken (tokenizer, train-00001-of-00003.tfrecord)" in captured.err
    examples = upload_folder(examples_dir, bucket / "examples")
    settings = {"repair": True, "teacher": there["teacher"], "examples": examples}
    said = _run(capsys, verify_cache, input_dir=cache, **settings)
    assert f"{file}: renamed to {file}.broken" in said
    assert f"{file}: made again, the same bytes" in said
    made = read_objects(cache)
    assert len(made.pop(f"{file}.broken")) == len(content)
    assert made.pop(f".{file}.json.broken") == made[f".{file}.json"]
    assert made == read_folder(cache_dir)
    assert f"no problems found: {cache}" in _run(capsys, verify_cache, input_dir=cache)


def test_fine_tuning(capsys, places, bucket, tmp_path, sentiment_dir, model_dir) -> None:
    here = {"data_dir": sentiment_dir, "model": model_dir, "output_dir": tmp_path / "runs"}
    there = {
        "data_dir": upload_folder(sentiment_dir, bucket / "data"),
        "model": upload_folder(model_dir, bucket / model_dir.name),
        "output_dir": bucket / "runs",
    }
    settings = {"task": "chnsenticorp", "num_train_epochs": 1, "learning_rates": "2e-3"}
    settings |= {"train_batch_size": 16, "max_seq_length": 48, "compute_dtype": "float32"}
    said = [_run(capsys, finetune, **settings, **place) for place in (there, here)]
    assert said[0].replace(str(bucket), str(tmp_path)) == said[1]
    # Finished runs are read, not repeated.
    assert _run(capsys, finetune, **settings, **there) == said[0]
    made, expected = read_objects(there["output_dir"]), read_folder(here["output_dir"])
    run = "lr-0.002_seed-1"
    for name in (f"{run}/model/model.safetensors", f"{run}/predictions/dev/ChnSentiCorp.tsv"):
        assert made[name] == expected[name]
    timed = re.compile(r"tensorboard/|metrics\.json|summary\.json")
    kept = [name for name in expected if not timed.search(name)]
    assert {name: made[name] for name in kept} == {name: expected[name] for name in kept}


def test_work_that_is_done_on_this_machine(capsys) -> None:
    assert quickstart.main(["tool", "--work=s3://bucket/work"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --work: ") and "s3://bucket/work" in error
