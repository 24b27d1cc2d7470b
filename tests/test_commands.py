"""The three commands: output, error messages, and a complete pipeline."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline import create_pretraining_data, create_teacher_output_data, run_distill
from pipeline.base.location import Location
from pipeline.distill.step_times import CLOCK_FIELDS
from pipeline.storage import manifest
from tests.conftest import ROOT, run_python

RECIPES = sorted((ROOT / "data_specs" / "recipes").glob("*.flags"))
COMMANDS = {
    "create_pretraining_data": create_pretraining_data,
    "create_teacher_output_data": create_teacher_output_data,
    "run_distill": run_distill,
}


def _fails(capsys, command, *flags: str) -> str:
    """Runs a command that must fail and returns the one line it prints."""
    status = command.main(["command", *flags])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.replace("\r", "\n").split("\n") if line]
    errors = [line for line in lines if line.startswith("error: ")]
    assert status == 1
    assert len(errors) == 1 and lines[-1] == errors[0]
    assert "Traceback" not in captured.err
    return errors[0]


@pytest.fixture
def prepare_flags(corpus_dir, vocab_file, tmp_path) -> dict[str, str]:
    """Valid flags of create_pretraining_data, by name."""
    return {
        "input_dir": str(corpus_dir),
        "vocab_file": str(vocab_file),
        "output_dir": str(tmp_path / "examples"),
        "max_seq_length": "48",
        "max_predictions_per_seq": "8",
        "doc_stride": "30",
        "max_workers": "1",
    }


def _flags(settings: dict[str, str], **changes: str | None) -> list[str]:
    values = {**settings, **changes}
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_flag_and_succeeds(capsys, name: str) -> None:
    assert COMMANDS[name].main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    values = COMMANDS[name].define_flags()
    own = {flag for flags in values.flags_by_module_dict().values() for flag in flags}
    for flag in own:
        assert f"-{flag.name}" in printed or f"[no]{flag.name}" in printed, flag.name


def test_help_can_be_piped_to_head() -> None:
    command = f"{sys.executable} -m pipeline.run_distill --help | head -n 1"
    result = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("Distills a student") and not result.stderr


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_flagfiles(recipe: pathlib.Path) -> None:
    values = run_distill.define_flags()
    values(["run_distill", f"--flagfile={recipe}", "--output_dir=x"])
    assert values.num_train_steps > 1000


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"input_dir": "/nowhere"}, "--input_dir: /nowhere: "),
        ({"vocab_file": "/nowhere"}, "--vocab_file: /nowhere: "),
        ({"dupe_factor": "0"}, "--dupe_factor: "),
        ({"dupe_factor": "many"}, "--dupe_factor: "),
        ({"segmenter": "words"}, "--segmenter: "),
        ({"max_predictions_per_seq": "46"}, "--max_predictions_per_seq: "),
        ({"output_dir": "", "vocab_file": ""}, "missing: --output_dir, --vocab_file "),
        ({"eval_fraction": "nan"}, "--eval_fraction: "),
        ({"no_such_flag": "1"}, "Unknown command line flag 'no_such_flag'"),
        ({"text_fields": ","}, "--text_fields: "),
        ({"masking": "moving"}, "--masking: "),
        ({"masking": "dynamic", "dupe_factor": "5"}, "--dupe_factor: "),
        ({"mask_smoothing": "0.7"}, "--mask_smoothing: "),
        ({"masking": "dynamic", "mask_smoothing": "-1"}, "--mask_smoothing: "),
        ({"corpus_spec": "nothing"}, "--corpus_spec: "),
        ({"corpora": "/nowhere", "input_dir": None}, "--corpora: /nowhere: "),
        ({"corpora": "x.yaml"}, "--corpora: "),
        ({"tfds_name": "no_such_set", "input_dir": None}, "--tfds_name: "),
        ({"tfds_name": "a", "corpus_spec": "wiki_zh", "input_dir": None}, "--tfds_name: "),
        ({"ray_address": "auto"}, "--ray_address: "),
    ],
)
def test_errors_of_prepare_name_the_flag(capsys, prepare_flags, changes, subject: str) -> None:
    line = _fails(capsys, create_pretraining_data, *_flags(prepare_flags, **changes))
    assert line.startswith(f"error: {subject}")
    assert not pathlib.Path(prepare_flags["output_dir"]).exists()


def test_prepare_without_a_corpus_names_its_flags(capsys, prepare_flags) -> None:
    del prepare_flags["input_dir"]
    line = _fails(capsys, create_pretraining_data, *_flags(prepare_flags))
    for flag in ("--input_dir", "--tfds_name", "--corpora"):
        assert flag in line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_malformed_line_is_reported_with_file_and_line(
    capsys, prepare_flags, tmp_path, workers: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"title": "a", "content": "b"}\n{broken\n', encoding="utf-8")
    changes = {"input_dir": str(path), "max_workers": workers}
    line = _fails(capsys, create_pretraining_data, *_flags(prepare_flags, **changes))
    assert f"{path}, line 2: " in line
    assert not list(pathlib.Path(prepare_flags["output_dir"]).iterdir())


def test_output_inside_the_corpus_is_refused(capsys, prepare_flags) -> None:
    inside = prepare_flags["input_dir"] + "/examples"
    line = _fails(capsys, create_pretraining_data, *_flags(prepare_flags, output_dir=inside))
    assert line.startswith("error: --output_dir: ") and "--input_dir=" in line


def test_corpus_without_usable_documents_is_refused(capsys, prepare_flags, tmp_path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("短\n\n短\n", encoding="utf-8")
    line = _fails(capsys, create_pretraining_data, *_flags(prepare_flags, input_dir=str(path)))
    assert "--min_chars=20" in line


def test_prepare_resumes_after_a_full_disk(capsys, prepare_flags, monkeypatch) -> None:
    """Re-running the command with enough space gives a valid directory."""
    folder = Location.parse(prepare_flags["output_dir"])
    real = os.replace
    renamed = []

    def full(source, target):
        if "train-" in str(target) and str(target).endswith(".tfrecord"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        renamed.append(str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        line = _fails(capsys, create_pretraining_data, *_flags(prepare_flags, num_shards="2"))
    assert "train-00000-of-00002.tfrecord: No space left on device" in line
    assert renamed and not (folder / "manifest.json").exists()
    assert not list(folder.glob("**/*.tmp"))
    assert create_pretraining_data.main(["x", *_flags(prepare_flags, num_shards="2")]) == 0
    manifest.verify(folder, manifest.load(folder), full=True)


def test_prepare_prints_a_summary(capsys, prepare_flags) -> None:
    assert create_pretraining_data.main(["x", *_flags(prepare_flags, random_next="True")]) == 0
    captured = capsys.readouterr()
    assert "note: --random_next has no effect" in captured.err
    loaded = manifest.load(Location.parse(prepare_flags["output_dir"]))
    for expected in (
        "documents  60 read, 0 skipped",
        f"windows    {loaded.statistics['windows']:,}",
        f"train      {loaded.num_examples('train'):,} examples, ",
        f"eval       {loaded.num_examples('eval'):,} examples, ",
        "[UNK]",
    ):
        assert expected in captured.out


def test_prepare_prints_a_summary_of_unmasked_windows(capsys, prepare_flags) -> None:
    assert create_pretraining_data.main(["x", *_flags(prepare_flags, masking="dynamic")]) == 0
    printed = capsys.readouterr().out
    loaded = manifest.load(Location.parse(prepare_flags["output_dir"]))
    assert (
        loaded.num_examples("train") + loaded.num_examples("eval") == loaded.statistics["windows"]
    )
    assert f"windows    {loaded.statistics['windows']:,}" in printed
    assert "masked     by run_distill, differently in each epoch" in printed
    assert f"unmasked windows: {prepare_flags['output_dir']}" in printed


def test_static_masks_are_the_default_five_copies(capsys, prepare_flags) -> None:
    assert create_pretraining_data.main(["x", *_flags(prepare_flags)]) == 0
    loaded = manifest.load(Location.parse(prepare_flags["output_dir"]))
    assert loaded.dupe_factor == loaded.flags["dupe_factor"] == 5
    # The default masking adds no keys, so directories of earlier versions are recognized.
    assert not {"masking", "mask_smoothing"} & loaded.flags.keys()
    assert create_pretraining_data.main(["x", "--help"]) == 0
    assert "5 by default" in " ".join(capsys.readouterr().out.split())
    line = _fails(capsys, create_pretraining_data, *_flags(prepare_flags, masking="dynamic"))
    assert "masked_examples" in line and "unmasked_windows" in line


def test_error_of_another_run_configuration_prints_both_values(capsys, prepare_flags) -> None:
    assert create_pretraining_data.main(["x", *_flags(prepare_flags)]) == 0
    capsys.readouterr()
    line = _fails(capsys, create_pretraining_data, *_flags(prepare_flags, masked_lm_prob="0.2"))
    for text in ("masked_lm_prob", "0.15", "0.2"):
        assert text in line


@pytest.mark.parametrize(
    ("command", "flags", "subject"),
    [
        ("create_teacher_output_data", "--teacher=x", "missing: --output_dir "),
        ("create_teacher_output_data", "--output_dir=x", "--teacher: "),
        (
            "create_teacher_output_data",
            "--output_dir=x --teacher=y --temperatures=1,b",
            "--temperatures: ",
        ),
        (
            "create_teacher_output_data",
            "--output_dir=x --teacher=/nowhere --input_dir=/nowhere",
            "--teacher: ",
        ),
        ("run_distill", "--output_dir=x --student=y --losses=cross_entropy=1", "--losses: "),
        (
            "run_distill",
            "--output_dir=x --student=y --loss_schedules=masked_lm=linear:0",
            "--loss_schedules: ",
        ),
        ("run_distill", "--output_dir=x --student=y --freeze=words", "--freeze: "),
        ("run_distill", "--output_dir=x --backend=torch", "--backend: "),
        ("run_distill", "--output_dir=x", "--student: "),
        ("run_distill", "--student=x", "--output_dir: "),
        ("run_distill", "--output_dir=x --student=y --process_id=0", "--process_id: "),
        ("run_distill", "--output_dir=x --recipe=bert", "--recipe: "),
        ("run_distill", "--output_dir=x --student=/nowhere --input_dir=y", "--student: "),
    ],
)
def test_errors_of_capture_and_distill_name_the_flag(
    capsys, command, flags: str, subject: str
) -> None:
    assert _fails(capsys, COMMANDS[command], *flags.split()).startswith(f"error: {subject}")
    assert not pathlib.Path("x").exists()


def test_tensorflow_for_tpus_is_refused_together_with_jax(capsys, tmp_path, monkeypatch) -> None:
    package = tmp_path / "tensorflow_tpu-2.20.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tensorflow-tpu\nVersion: 2.20\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--input_dir=x", f"--output_dir={tmp_path / 'y'}", "--student=z", "--backend=jax")
    assert _fails(capsys, run_distill, *flags).startswith("error: --backend: ")
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(("key", "value"), [("model_type", "deberta-v2"), ("hidden_act", "swish")])
def test_teacher_of_an_unknown_architecture_is_refused(
    capsys, examples_dir, teacher_dir, tmp_path, key: str, value: str
) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    shutil.copytree(teacher_dir, teacher)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, key: value}))
    flags = (f"--input_dir={examples_dir}", f"--teacher={teacher}", f"--output_dir={out}")
    line = _fails(capsys, create_teacher_output_data, *flags)
    assert line.startswith(f"error: --teacher: {teacher / 'config.json'}: {key}: ")
    assert value in line
    assert not out.exists()


def _corrupt(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_model_that_does_not_fit_its_input_is_refused(
    capsys, cache_dir, examples_dir, teacher_dir, tmp_path
) -> None:
    other_model = tmp_path / "other"
    shutil.copytree(teacher_dir, other_model)
    with open(other_model / "vocab.txt", "a", encoding="utf-8") as file:
        file.write("又一\n")
    base = [f"--output_dir={tmp_path / 'out'}"]
    capture = (*base, f"--input_dir={examples_dir}", f"--teacher={other_model}")
    assert _fails(capsys, create_teacher_output_data, *capture).startswith("error: --teacher: ")
    config = json.loads((other_model / "config.json").read_text())
    (other_model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    (other_model / "vocab.txt").unlink()
    line = _fails(
        capsys, run_distill, *base, f"--input_dir={cache_dir}", f"--student={other_model}"
    )
    assert line.startswith("error: --student: ") and "48" in line
    (other_model / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    line = _fails(capsys, create_teacher_output_data, *capture)
    assert "bert.embeddings.word_embeddings.weight" in line
    damaged = tmp_path / "damaged"
    shutil.copytree(cache_dir, damaged)
    _corrupt(damaged / "train-00001-of-00003.tfrecord")
    line = _fails(capsys, run_distill, *base, f"--input_dir={damaged}", f"--student={teacher_dir}")
    assert "train-00001-of-00003.tfrecord: " in line
    line = _fails(
        capsys, run_distill, *base, f"--input_dir={examples_dir}", f"--student={teacher_dir}"
    )
    assert line.startswith("error: --losses: ")


def _run(name: str, *flags: str) -> str:
    result = run_python("-m", f"pipeline.{name}", *flags)
    assert "Traceback" not in result.stderr
    return result.stdout


def _last_evaluation(folder: pathlib.Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "eval"][-1]


@pytest.mark.long
def test_pipeline_gives_equal_results_on_both_backends(
    prepare_flags, teacher_dir, tmp_path
) -> None:
    """Runs each command in a new process, from the corpus to the student."""
    _run("create_pretraining_data", *_flags(prepare_flags, max_workers="2", eval_fraction="0.2"))
    reports = {}
    for backend in ("tensorflow", "jax"):
        cache, student = tmp_path / f"cache_{backend}", tmp_path / f"student_{backend}"
        common = [f"--backend={backend}"]
        _run(
            "create_teacher_output_data",
            *common,
            f"--input_dir={prepare_flags['output_dir']}",
            f"--teacher={teacher_dir}",
            f"--output_dir={cache}",
            "--truncation_factor=16",
        )
        # Both backends train from one cache without dropout, because their random numbers differ.
        config = json.loads((teacher_dir / "config.json").read_text())
        still = tmp_path / "still"
        shutil.copytree(teacher_dir, still, dirs_exist_ok=True)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            config[name] = 0.0
        (still / "config.json").write_text(json.dumps(config))
        printed = _run(
            "run_distill",
            *common,
            f"--input_dir={tmp_path / 'cache_tensorflow'}",
            f"--init_from={still}",
            "--student_layers=2",
            f"--output_dir={student}",
            "--train_batch_size=8",
            "--num_train_steps=12",
            "--learning_rate=1e-3",
            "--save_checkpoints_steps=10",
            "--log_steps=4",
            # On JAX, each length has a separate program, which takes seconds to compile.
            "--length_buckets=2",
        )
        assert "teacher_agreement" in printed and f"student: {student}" in printed
        reports[backend] = _last_evaluation(student)
    for name, value in reports["tensorflow"].items():
        if name not in ("split", *CLOCK_FIELDS):
            assert reports["jax"][name] == pytest.approx(value, rel=2e-3, abs=2e-3), name
    caches = [manifest.load(tmp_path / f"cache_{backend}") for backend in ("tensorflow", "jax")]
    assert caches[0].num_examples("train") == caches[1].num_examples("train")
    assert caches[0].teacher_info == caches[1].teacher_info


@pytest.mark.long
def test_published_command_lines_of_the_original_project_run(
    prepare_flags, teacher_dir, vocab_file, tmp_path
) -> None:
    """The commands are those of its README, corrected, with small sizes and Google checkpoints."""
    import tensorflow as tf

    from pipeline.models import weight_names
    from pipeline.models.formats import model_directory

    google = tmp_path / "google"
    google.mkdir()
    source = model_directory.find_model(Location.parse(str(teacher_dir)))
    weights = source.read_weights()
    tensors = {row.tf1: weights[row.ours] for row in weight_names.weight_table(source.config)}
    tf.raw_ops.SaveV2(
        prefix=str(google / "bert_model.ckpt"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    (google / "bert_config.json").write_text(json.dumps(dataclasses.asdict(source.config)))
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"title": f"第{n}天", "content": "春天来了，院子里的桃树开满了花。" * (n % 4 + 1)}
        for n in range(30)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (data / "rows.json").write_text("\n".join(lines), encoding="utf-8")
    examples, cache, student = (tmp_path / name for name in ("examples", "cache", "student"))
    lengths = ["--max_seq_length=48", "--max_predictions_per_seq=8"]
    _run(
        "create_pretraining_data",
        f"--input_dir={data}",
        f"--output_dir={examples}",
        f"--vocab_file={vocab_file}",
        "--do_whole_word_mask=True",
        "--random_next=True",
        *lengths,
        "--random_seed=12345",
        "--dupe_factor=5",
        "--masked_lm_prob=0.15",
        "--doc_stride=24",
        "--max_workers=2",
        "--short_seq_prob=0.1",
    )
    _run(
        "create_teacher_output_data",
        f"--bert_config_file={google}/bert_config.json",
        f"--input_file={examples}/*.tfrecord",
        f"--output_dir={cache}",
        "--truncation_factor=128",
        f"--init_checkpoint={google}/bert_model.ckpt",
        *lengths,
        "--predict_batch_size=64",
    )
    _run(
        "run_distill",
        f"--bert_config_file={google}/bert_config.json",
        f"--input_file={cache}/*.tfrecord",
        f"--output_dir={student}",
        f"--init_checkpoint={google}/bert_model.ckpt",
        "--truncation_factor=128",
        *lengths,
        "--do_train=True",
        "--do_eval=True",
        "--train_batch_size=8",
        "--eval_batch_size=16",
        "--num_train_steps=6",
        "--num_warmup_steps=2",
    )
    loaded = model_directory.find_model(Location.parse(str(student))).read_weights()
    moved = [np.abs(loaded[name] - weights[name]).max() for name in weights]
    assert 0 < max(moved) < 1e-3
