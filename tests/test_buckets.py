"""The three stages write the same bytes in a bucket as on a disk."""

import dataclasses
import gzip
import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_specs.corpora import CorpusSource
from pipeline import create_pretraining_data, create_teacher_output_data
from pipeline.base.errors import InputError
from pipeline.base.local_mirror import CACHE_VARIABLE, LIMIT_VARIABLE, mirror_folder
from pipeline.base.location import BucketLocation, Location
from pipeline.distill import training
from pipeline.distill.checkpoints import CheckpointFiles
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.distill.step_times import CLOCK_FIELDS
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.models.formats import model_directory
from pipeline.storage import manifest as manifests
from pipeline.storage import shuffling
from pipeline.storage.manifest import TRAIN
from tests.conftest import make_cache, read_folder, read_objects, upload_folder
from tools import convert_checkpoint

OUT_OF_ORDER = OSError("503 SlowDown")


@pytest.fixture
def uploaded_names(bucket, monkeypatch) -> list[str]:
    """The names of objects in the order of their uploads."""
    names: list[str] = []
    for method in ("put_file", "pipe_file"):
        real = getattr(MemoryFileSystem, method)

        def write(self, first, second, *rest, method=method, real=real, **options):
            real(self, first, second, *rest, **options)
            url = second if method == "put_file" else first
            names.append(str(Location.parse(url).key.relative_to(bucket.key)))

        monkeypatch.setattr(MemoryFileSystem, method, write)
    return names


def _fail_uploads_of(patch: pytest.MonkeyPatch, name: str) -> None:
    """Makes the store refuse objects whose names contain a text."""
    real = MemoryFileSystem.put_file

    def put_file(self, local, remote, **options):
        if name in remote:
            raise OUT_OF_ORDER
        real(self, local, remote, **options)

    patch.setattr(MemoryFileSystem, "put_file", put_file)


@pytest.fixture
def prepare_config(bucket, examples_config, corpus_dir, vocab_file):
    """The settings of the session's masked examples, with corpus and output in a bucket."""
    (bucket / "vocab.txt").take(vocab_file)
    return dataclasses.replace(
        examples_config,
        corpora=(CorpusSource(input_dir=str(upload_folder(corpus_dir, bucket / "corpus"))),),
        vocab_file=bucket / "vocab.txt",
        output_dir=bucket / "examples",
    )


def test_masked_examples_in_a_bucket_equal_those_on_disk(
    prepare_config, uploaded_names, examples_dir
) -> None:
    written_manifest = create_masked_examples(prepare_config)
    assert read_objects(prepare_config.output_dir) == read_folder(examples_dir)
    order = [
        name.removeprefix("examples/") for name in uploaded_names if name.startswith("examples/")
    ]
    assert (order[0], order[-1]) == ("request.json", "manifest.json")
    for shard in (shard for shards in written_manifest.splits.values() for shard in shards):
        assert order.index(f".{shard.file}.json") < order.index(shard.file)
    # The local mirror holds only copies of objects that were read.
    assert {path.name for path in mirror_folder().rglob("*") if path.is_file()} <= {
        "vocab.txt",
        ".lock.tmp",
    }
    uploaded_names.clear()
    assert create_masked_examples(prepare_config) == written_manifest and uploaded_names == []
    with pytest.raises(InputError) as caught:
        create_masked_examples(dataclasses.replace(prepare_config, random_seed=7))
    assert caught.value.subject == str(prepare_config.output_dir)
    assert "random_seed (recorded 12345, now 7)" in caught.value.received


def test_interrupted_prepare_resumes_on_another_machine(
    prepare_config, uploaded_names, monkeypatch, examples_dir, tmp_path
) -> None:
    with monkeypatch.context() as patch:
        _fail_uploads_of(patch, "train-00001")
        with pytest.raises(OSError, match="503 SlowDown"):
            create_masked_examples(prepare_config)
    objects = read_objects(prepare_config.output_dir)
    assert "train-00000-of-00003.tfrecord" in objects
    assert not {"train-00001-of-00003.tfrecord", "manifest.json"} & objects.keys()
    with pytest.raises(InputError):
        manifests.load(prepare_config.output_dir)
    # The second run has an empty local mirror, as on another machine. Changed text is refused.
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "elsewhere"))
    first = Location.parse(prepare_config.corpora[0].input_dir) / "a.txt"
    text = first.read_bytes()
    first.write_bytes(text.replace("春天".encode(), "秋天".encode()))
    with pytest.raises(InputError, match="text has changed"):
        create_masked_examples(prepare_config)
    first.write_bytes(text)
    uploaded_names.clear()
    create_masked_examples(prepare_config)
    assert "examples/train-00000-of-00003.tfrecord" not in uploaded_names
    assert "examples/train-00001-of-00003.tfrecord" in uploaded_names
    assert read_objects(prepare_config.output_dir) == read_folder(examples_dir)


def test_folders_globs_and_packed_files_in_a_bucket_equal_those_on_disk(
    bucket, prepare_config, corpus_dir, tmp_path, monkeypatch
) -> None:
    """Names of files, which decide the masks, are relative to the corpus as on a disk."""
    folder = tmp_path / "text"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "c.txt").write_text("never read")
    shutil.copy(corpus_dir / "a.txt", folder / "sub" / "deep")
    (folder / "b.txt.gz").write_bytes(gzip.compress((corpus_dir / "b.txt").read_bytes(), mtime=0))
    upload_folder(folder, bucket / "text")
    for number, pattern in enumerate(("", "/sub", "/b.txt.gz", "/*/*/*.txt", "/**/*.txt*")):
        results = []
        for corpus, output in ((str(folder), tmp_path), (str(bucket / "text"), bucket)):
            source = CorpusSource(input_dir=corpus + pattern)
            output = output / f"out{number}"
            create_masked_examples(
                dataclasses.replace(prepare_config, corpora=(source,), output_dir=output)
            )
            results.append(
                read_folder(output) if isinstance(output, pathlib.Path) else read_objects(output)
            )
        assert results[0] == results[1], pattern


def test_mixture_in_a_bucket_names_corpora_relative_to_its_file(
    capsys, bucket, prepare_config, corpus_dir
) -> None:
    """A mixture may also name a corpus by URL or local path."""
    (bucket / "own.yaml").write_bytes(
        b"title: t\nurl: none\nlicence: none\nlanguage: zh\nreader: text\n"
    )
    content = (
        "corpora:\n"
        "  - {name: one, input_dir: corpus/a.txt}\n"
        f"  - {{input_dir: '{bucket}/corpus/b.txt', corpus_spec: own.yaml}}\n"
        f"  - {{name: here, input_dir: '{corpus_dir}'}}\n"
    )
    (bucket / "mixture.yaml").write_bytes(content.encode())
    flags = ["--max_workers=1", f"--vocab_file={prepare_config.vocab_file}", "--max_seq_length=48"]
    flags += ["--max_predictions_per_seq=8", f"--corpora={bucket}/mixture.yaml"]
    status = create_pretraining_data.main(["x", *flags, f"--output_dir={bucket}/mixed"])
    assert status == 0
    counts = manifests.load(bucket / "mixed").statistics
    assert set(counts["examples_by_corpus"]) == {"one", "own", "here"}
    assert counts["documents"] == 120
    capsys.readouterr()
    flags = ["--tfds_name=wiki40b", "--input_dir=gs://bucket/tfds", "--max_workers=1"]
    flags += ["--vocab_file=v", "--output_dir=o"]
    status = create_pretraining_data.main(["x", *flags])
    assert status == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --input_dir: gs://bucket/tfds: ")


@pytest.fixture
def teacher(bucket, teacher_dir) -> BucketLocation:
    """The session's teacher in the bucket."""
    return upload_folder(teacher_dir, bucket / "teacher")


def test_interrupted_teacher_cache_in_a_bucket_resumes_to_equal_bytes(
    bucket, uploaded_names, examples_dir, teacher, cache_dir, monkeypatch
) -> None:
    examples = upload_folder(examples_dir, bucket / "examples")
    uploaded_names.clear()
    with monkeypatch.context() as patch:
        _fail_uploads_of(patch, "train-00002")
        with pytest.raises(OSError, match="503 SlowDown"):
            make_cache(bucket / "cache", examples, teacher)
    assert "cache/train-00001-of-00003.tfrecord" in uploaded_names
    assert not (bucket / "cache" / "manifest.json").exists()
    uploaded_names.clear()
    make_cache(bucket / "cache", examples, teacher)
    assert "cache/train-00001-of-00003.tfrecord" not in uploaded_names
    assert uploaded_names[-1] == "cache/manifest.json"
    assert read_objects(bucket / "cache") == read_folder(cache_dir)


def test_damaged_shard_in_a_bucket_is_named(capsys, bucket, examples_dir, teacher) -> None:
    examples = upload_folder(examples_dir, bucket / "examples")
    shard = examples / "train-00001-of-00003.tfrecord"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(bytes(content))
    flags = [f"--input_dir={examples}", f"--teacher={teacher}", f"--output_dir={bucket}/cache"]
    assert create_teacher_output_data.main(["x", *flags]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(shard) in line and "SHA-256" in line
    shard.write_bytes(bytes(content[:-1]))
    assert create_teacher_output_data.main(["x", *flags]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(shard) in line and "truncated" in line
    assert not (bucket / "cache").exists()


def test_google_checkpoint_in_a_bucket_is_read(bucket, tmp_path, teacher_dir) -> None:
    """TensorFlow needs all three files at once."""
    source = model_directory.find_model(teacher_dir)
    weights = source.read_weights()
    (tmp_path / "bert_config.json").write_json(convert_checkpoint.google_config(source.config))
    convert_checkpoint.write_tf1_weights(str(tmp_path / "bert_model.ckpt"), source.config, weights)
    local = model_directory.find_model(tmp_path)
    uploaded = model_directory.find_model(upload_folder(tmp_path, bucket / "google"))
    assert uploaded.sha256() == local.sha256()
    assert uploaded.open_files().shapes == local.open_files().shapes
    loaded_weights = uploaded.read_weights()
    assert all((loaded_weights[name] == weights[name]).all() for name in weights)
    google = bucket / "google"
    named = model_directory.ModelSource.from_google(
        google / "bert_config.json", google / "bert_model.ckpt"
    )
    assert named.sha256() == local.sha256()
    with pytest.raises(InputError) as caught:
        model_directory.find_model(bucket / "googel")
    assert caught.value.subject == f"{bucket}/googel"


@pytest.fixture
def distill_config(bucket, cache_dir, teacher) -> Callable[..., DistillConfig]:
    """A function that returns settings of a run with an output directory."""
    cache = upload_folder(cache_dir, bucket / "cache")

    def configure(output_dir: object, **changes: object) -> DistillConfig:
        settings = {
            "student": StudentConfig(init_from=teacher, student_layers=2),
            "losses": {"soft_cross_entropy": 1.0, "probability_cosine": 1.0},
            "input_dir": cache,
            "train_batch_size": 8,
            "eval_batch_size": 8,
            "num_train_steps": 8,
            "learning_rate": 1e-3,
            "save_checkpoints_steps": 3,
            "log_steps": 2,
            "shuffle_buffer_size": 64,
            "verify": "sizes",
        }
        return DistillConfig(output_dir=output_dir, **{**settings, **changes})

    return configure


def _lines(content: bytes) -> list[dict]:
    """Returns the lines of metrics.jsonl without fields that depend on the clock."""
    lines = [json.loads(line) for line in content.splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in lines]


@pytest.mark.long
def test_interrupted_student_in_a_bucket_resumes_to_equal_bytes(
    bucket, distill_config, cache_dir, teacher_dir, tmp_path, monkeypatch
) -> None:
    """Compares a local run with a run in a bucket that is interrupted between two checkpoints."""
    start = StudentConfig(init_from=teacher_dir, student_layers=2)
    training.distill(distill_config(tmp_path / "here", student=start, input_dir=cache_dir))
    expected = read_folder(tmp_path / "here")
    config = distill_config(bucket / "student")

    def interrupted_save(files, step, tensors, real=CheckpointFiles.save, **settings):
        if step == 6:
            raise KeyboardInterrupt
        real(files, step, tensors, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFiles, "save", interrupted_save)
        with pytest.raises(KeyboardInterrupt, match="resume from step 3, the last checkpoint"):
            training.distill(config)
    objects = read_objects(config.output_dir)
    assert "model.safetensors" not in objects
    assert "checkpoints/step-00000003.safetensors" in objects
    # The log has at least all lines up to the checkpoint.
    assert _lines(objects["metrics.jsonl"])[:4] == _lines(expected["metrics.jsonl"])[:4]
    training.distill(config)
    objects = read_objects(config.output_dir)
    plain = [name for name in expected if not name.startswith("tensorboard/")]
    assert [name for name in objects if not name.startswith("tensorboard/")] == sorted(plain)
    for name in plain:
        if name == "metrics.jsonl":
            assert _lines(objects[name]) == _lines(expected[name])
        else:
            assert objects[name] == expected[name], name
    events = [name for name in objects if name.startswith("tensorboard/train/events")]
    # Each of the two processes has written an event file, as on a disk.
    assert len(events) == 2 and all(objects[name] for name in events)
    assert not list(mirror_folder().rglob("step-*"))
    with pytest.raises(
        InputError, match=r"another run configuration: learning_rate \(recorded 0.001"
    ):
        training.distill(dataclasses.replace(config, learning_rate=2e-3))


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_shard_that_cannot_be_downloaded_is_named(
    bucket, distill_config, monkeypatch, moment: int
) -> None:
    """Downloads fail while lengths are sampled, and in TensorFlow's threads during training."""
    real, calls = BucketLocation.download, []

    def download(path, target):
        if "train-" in str(path):
            calls.append(str(path))
            if len(calls) > moment:
                raise OSError(5, "the store does not answer as expected (x)", str(path))
        real(path, target)

    monkeypatch.setattr(BucketLocation, "download", download)
    with pytest.raises(OSError, match="the store does not answer as expected") as caught:
        training.distill(distill_config(bucket / "student"))
    assert caught.value.filename == calls[moment]


@pytest.mark.long
def test_cache_larger_than_the_mirror_limit_trains_to_the_same_bits(
    bucket, distill_config, cache_dir, monkeypatch, tmp_path
) -> None:
    """Shards are read one by one; the next is downloaded early only if both fit."""
    monkeypatch.setitem(shuffling.record_groups.__kwdefaults__, "group_size", 1)
    training.distill(distill_config(tmp_path / "unlimited", do_eval=False))
    shutil.rmtree(mirror_folder())
    shards = manifests.load(cache_dir).splits[TRAIN]
    largest = max(shard.bytes for shard in shards)
    assert 2.5 * largest < sum(shard.bytes for shard in shards)
    real, present = BucketLocation.download, []

    def download(path, target):
        real(path, target)
        sizes = [file.stat().st_size for file in mirror_folder().rglob("*train-*") if file.exists()]
        present.append(sum(sizes))

    monkeypatch.setattr(BucketLocation, "download", download)
    for name, limit in (("one", largest), ("two", 2 * largest)):
        present.clear()
        monkeypatch.setenv(LIMIT_VARIABLE, str(limit))
        training.distill(distill_config(tmp_path / name, do_eval=False))
        assert max(present) <= limit and len(present) > len(shards)
        for file in ("model.safetensors", "checkpoints/step-00000008.safetensors"):
            expected = (tmp_path / "unlimited" / file).read_bytes()
            assert (tmp_path / name / file).read_bytes() == expected
    monkeypatch.setenv(LIMIT_VARIABLE, str(largest - 1))
    with pytest.raises(InputError) as caught:
        training.distill(distill_config(tmp_path / "none", do_eval=False))
    assert caught.value.subject == LIMIT_VARIABLE


@pytest.mark.long
def test_only_shards_that_are_read_are_downloaded(bucket, distill_config, cache_dir) -> None:
    """The input is a glob of one shard, with a check of sizes only."""
    config = distill_config(
        bucket / "student",
        input_dir=None,
        input_file=bucket / "cache/train-00001-*",
        num_train_steps=2,
    )
    training.distill(config)
    copied = {path.name for path in mirror_folder().rglob("*.tfrecord")}
    assert copied == {"train-00001-of-00003.tfrecord"}
