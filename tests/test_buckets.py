"""The three stages on objects in a bucket give the bytes that they give on a disk."""

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
def written(bucket, monkeypatch) -> list[str]:
    """The names of objects in the order in which they appear."""
    names: list[str] = []
    for method in ("put_file", "pipe_file"):
        real = getattr(MemoryFileSystem, method)

        def write(self, first, second, *rest, method=method, real=real, **options):
            real(self, first, second, *rest, **options)
            url = second if method == "put_file" else first
            names.append(str(Location.parse(url).key.relative_to(bucket.key)))

        monkeypatch.setattr(MemoryFileSystem, method, write)
    return names


def _broken_at(patch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the store refuses whatever has this in its name."""
    real = MemoryFileSystem.put_file

    def put_file(self, local, remote, **options):
        if name in remote:
            raise OUT_OF_ORDER
        real(self, local, remote, **options)

    patch.setattr(MemoryFileSystem, "put_file", put_file)


@pytest.fixture
def stage_1a(bucket, examples_config, corpus_dir, vocab_file):
    """The session's masked examples, from a corpus in a bucket into the bucket."""
    (bucket / "vocab.txt").take(vocab_file)
    return dataclasses.replace(
        examples_config,
        corpora=(CorpusSource(input_dir=str(upload_folder(corpus_dir, bucket / "corpus"))),),
        vocab_file=bucket / "vocab.txt",
        output_dir=bucket / "examples",
    )


def test_masked_examples(stage_1a, written, examples_dir) -> None:
    made = create_masked_examples(stage_1a)
    assert read_objects(stage_1a.output_dir) == read_folder(examples_dir)
    order = [name.removeprefix("examples/") for name in written if name.startswith("examples/")]
    assert (order[0], order[-1]) == ("request.json", "manifest.json")
    for shard in (shard for shards in made.splits.values() for shard in shards):
        assert order.index(f".{shard.file}.json") < order.index(shard.file)
    # Nothing but copies of what was read is left on this machine.
    assert {path.name for path in mirror_folder().rglob("*") if path.is_file()} <= {
        "vocab.txt",
        ".lock.tmp",
    }
    written.clear()
    assert create_masked_examples(stage_1a) == made and written == []
    with pytest.raises(InputError) as caught:
        create_masked_examples(dataclasses.replace(stage_1a, random_seed=7))
    assert caught.value.subject == str(stage_1a.output_dir)
    assert "random_seed is 12345 there and 7 here" in caught.value.received


def test_an_interrupted_stage_1a_goes_on(
    stage_1a, written, monkeypatch, examples_dir, tmp_path
) -> None:
    with monkeypatch.context() as patch:
        _broken_at(patch, "train-00001")
        with pytest.raises(OSError, match="503 SlowDown"):
            create_masked_examples(stage_1a)
    there = read_objects(stage_1a.output_dir)
    assert "train-00000-of-00003.tfrecord" in there
    assert not {"train-00001-of-00003.tfrecord", "manifest.json"} & there.keys()
    with pytest.raises(InputError):
        manifests.load(stage_1a.output_dir)
    # On another machine, where nothing is known of the first, and the text is not the same.
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "elsewhere"))
    first = Location.parse(stage_1a.corpora[0].input_dir) / "a.txt"
    text = first.read_bytes()
    first.write_bytes(text.replace("春天".encode(), "秋天".encode()))
    with pytest.raises(InputError, match="text has changed"):
        create_masked_examples(stage_1a)
    first.write_bytes(text)
    written.clear()
    create_masked_examples(stage_1a)
    assert "examples/train-00000-of-00003.tfrecord" not in written
    assert "examples/train-00001-of-00003.tfrecord" in written
    assert read_objects(stage_1a.output_dir) == read_folder(examples_dir)


def test_a_corpus_of_folders_globs_and_packedread_folder(
    bucket, stage_1a, corpus_dir, tmp_path, monkeypatch
) -> None:
    """Files are called as on a disk, whatever is above them: names decide the masks."""
    folder = tmp_path / "text"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "c.txt").write_text("never read")
    shutil.copy(corpus_dir / "a.txt", folder / "sub" / "deep")
    (folder / "b.txt.gz").write_bytes(gzip.compress((corpus_dir / "b.txt").read_bytes(), mtime=0))
    upload_folder(folder, bucket / "text")
    for number, pattern in enumerate(("", "/sub", "/b.txt.gz", "/*/*/*.txt", "/**/*.txt*")):
        made = []
        for place, output in ((str(folder), tmp_path), (str(bucket / "text"), bucket)):
            source = CorpusSource(input_dir=place + pattern)
            output = output / f"out{number}"
            create_masked_examples(
                dataclasses.replace(stage_1a, corpora=(source,), output_dir=output)
            )
            made.append(
                read_folder(output) if isinstance(output, pathlib.Path) else read_objects(output)
            )
        assert made[0] == made[1], pattern


def test_a_mixture_and_a_declaration(capsys, bucket, stage_1a, corpus_dir) -> None:
    """Folders are meant beside the file, wherever that is."""
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
    flags = ["--max_workers=1", f"--vocab_file={stage_1a.vocab_file}", "--max_seq_length=48"]
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


def test_teacher_cache(bucket, written, examples_dir, teacher, cache_dir, monkeypatch) -> None:
    examples = upload_folder(examples_dir, bucket / "examples")
    written.clear()
    with monkeypatch.context() as patch:
        _broken_at(patch, "train-00002")
        with pytest.raises(OSError, match="503 SlowDown"):
            make_cache(bucket / "cache", examples, teacher)
    assert "cache/train-00001-of-00003.tfrecord" in written
    assert not (bucket / "cache" / "manifest.json").exists()
    written.clear()
    make_cache(bucket / "cache", examples, teacher)
    assert "cache/train-00001-of-00003.tfrecord" not in written
    assert written[-1] == "cache/manifest.json"
    assert read_objects(bucket / "cache") == read_folder(cache_dir)


def test_a_damaged_shard_is_named(capsys, bucket, examples_dir, teacher) -> None:
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


def test_a_google_checkpoint(bucket, tmp_path, teacher_dir) -> None:
    """Three files, of which TensorFlow wants to see all."""
    source = model_directory.find_model(teacher_dir)
    weights = source.read_weights()
    (tmp_path / "bert_config.json").write_json(convert_checkpoint.google_config(source.config))
    convert_checkpoint.write_tf1_weights(str(tmp_path / "bert_model.ckpt"), source.config, weights)
    local = model_directory.find_model(tmp_path)
    found = model_directory.find_model(upload_folder(tmp_path, bucket / "google"))
    assert found.sha256() == local.sha256()
    assert found.open_files().shapes == local.open_files().shapes
    read = found.read_weights()
    assert all((read[name] == weights[name]).all() for name in weights)
    google = bucket / "google"
    named = model_directory.ModelSource.from_google(
        google / "bert_config.json", google / "bert_model.ckpt"
    )
    assert named.sha256() == local.sha256()
    with pytest.raises(InputError) as caught:
        model_directory.find_model(bucket / "googel")
    assert caught.value.subject == f"{bucket}/googel"


@pytest.fixture
def stage_2(bucket, cache_dir, teacher) -> Callable[..., DistillConfig]:
    """Returns what says how a student is trained, below a bucket or a folder."""
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
    """Returns lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in content.splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in lines]


def test_a_student(bucket, stage_2, cache_dir, teacher_dir, tmp_path, monkeypatch) -> None:
    """Trained here, trained in a bucket, and killed between two checkpoints there."""
    start = StudentConfig(init_from=teacher_dir, student_layers=2)
    training.distill(stage_2(tmp_path / "here", student=start, input_dir=cache_dir))
    expected = read_folder(tmp_path / "here")
    config = stage_2(bucket / "student")

    def killed(kept, step, tensors, real=CheckpointFiles.save, **settings):
        if step == 6:
            raise KeyboardInterrupt
        real(kept, step, tensors, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFiles, "save", killed)
        with pytest.raises(KeyboardInterrupt, match="resume from step 3, the last checkpoint"):
            training.distill(config)
    there = read_objects(config.output_dir)
    assert "model.safetensors" not in there and "checkpoints/step-00000003.safetensors" in there
    # What was measured up to the checkpoint is there, and a little more.
    assert _lines(there["metrics.jsonl"])[:4] == _lines(expected["metrics.jsonl"])[:4]
    training.distill(config)
    made = read_objects(config.output_dir)
    plain = [name for name in expected if not name.startswith("tensorboard/")]
    assert [name for name in made if not name.startswith("tensorboard/")] == sorted(plain)
    for name in plain:
        if name == "metrics.jsonl":
            assert _lines(made[name]) == _lines(expected[name])
        else:
            assert made[name] == expected[name], name
    events = [name for name in made if name.startswith("tensorboard/train/events")]
    # One of each process; on a disk it is the same.
    assert len(events) == 2 and all(made[name] for name in events)
    assert not list(mirror_folder().rglob("step-*"))
    with pytest.raises(InputError, match="another run configuration: learning_rate is 0.001 there"):
        training.distill(dataclasses.replace(config, learning_rate=2e-3))


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_shard_that_cannot_be_copied_is_named(bucket, stage_2, monkeypatch, moment: int) -> None:
    """Also where TensorFlow's threads ask for it: as lengths are sampled, and in training."""
    real, calls = BucketLocation.download, []

    def download(path, target):
        if "train-" in str(path):
            calls.append(str(path))
            if len(calls) > moment:
                raise OSError(5, "the store does not answer as expected (x)", str(path))
        real(path, target)

    monkeypatch.setattr(BucketLocation, "download", download)
    with pytest.raises(OSError, match="the store does not answer as expected") as caught:
        training.distill(stage_2(bucket / "student"))
    assert caught.value.filename == calls[moment]


def test_a_cache_of_three_times_the_limit_trains_to_the_same_bits(
    bucket, stage_2, cache_dir, monkeypatch, tmp_path
) -> None:
    """Shards are read one by one: the next is fetched only where there is room for both."""
    monkeypatch.setitem(shuffling.record_groups.__kwdefaults__, "group_size", 1)
    training.distill(stage_2(tmp_path / "unlimited", do_eval=False))
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
        training.distill(stage_2(tmp_path / name, do_eval=False))
        assert max(present) <= limit and len(present) > len(shards)
        for file in ("model.safetensors", "checkpoints/step-00000008.safetensors"):
            expected = (tmp_path / "unlimited" / file).read_bytes()
            assert (tmp_path / name / file).read_bytes() == expected
    monkeypatch.setenv(LIMIT_VARIABLE, str(largest - 1))
    with pytest.raises(InputError) as caught:
        training.distill(stage_2(tmp_path / "none", do_eval=False))
    assert caught.value.subject == LIMIT_VARIABLE


def test_only_shards_that_are_read_are_copied(bucket, stage_2, cache_dir) -> None:
    """A glob of one shard, its sizes checked: the others stay where they are."""
    config = stage_2(
        bucket / "student",
        input_dir=None,
        input_file=bucket / "cache/train-00001-*",
        num_train_steps=2,
    )
    training.distill(config)
    copied = {path.name for path in mirror_folder().rglob("*.tfrecord")}
    assert copied == {"train-00001-of-00003.tfrecord"}
