"""Models with more table rows than tokens give the same results as models without padding."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.base.errors import InputError
from pipeline.distill import training
from pipeline.distill.preparation import prepare
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.models.formats.model_directory import find_model
from pipeline.storage import cache_input, cache_tokenizer, manifest
from pipeline.teacher import summary
from tests.conftest import make_cache, read_folder
from tools import fidelity_report, plan_cache, verify_cache

_ROWS = 23
_BIAS = "cls.predictions.bias"


def pad_tables(model: pathlib.Path, copy: pathlib.Path, rows: int = _ROWS) -> pathlib.Path:
    """Copies a BERT and adds unused table rows, which would have the largest logits."""
    shutil.copytree(model, copy)
    tensors = load_file(copy / "model.safetensors")
    for name, value in tensors.items():
        if name == _BIAS or "word_embeddings" in name:
            unused_rows = np.full((rows, *value.shape[1:]), 9.0, np.float32)
            tensors[name] = np.concatenate([value, unused_rows])
    save_file(tensors, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    config["vocab_size"] += rows
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.fixture(scope="module")
def padded_dir(tmp_path_factory, teacher_dir) -> pathlib.Path:
    """The teacher with 23 unused rows; read only."""
    return pad_tables(teacher_dir, tmp_path_factory.mktemp("padded") / "teacher")


@pytest.fixture(scope="module")
def padded_cache_dir(tmp_path_factory, examples_dir, padded_dir) -> pathlib.Path:
    """A cache of the padded teacher; read only."""
    return make_cache(tmp_path_factory.mktemp("cache") / "padded", examples_dir, padded_dir)


def test_cache_of_a_padded_teacher_has_the_same_bytes(
    padded_cache_dir, cache_dir, padded_dir, vocab
) -> None:
    padded, plain = (manifest.load(folder) for folder in (padded_cache_dir, cache_dir))
    for shard in plain.shards:
        content = (cache_dir / shard.file).read_bytes()
        assert (padded_cache_dir / shard.file).read_bytes() == content
    teacher = padded.teacher_info.teacher
    assert teacher["unused_rows"] == _ROWS
    assert teacher["config"]["vocab_size"] == len(vocab) + _ROWS
    assert teacher["sha256"] == find_model(padded_dir).sha256()
    assert "unused_rows" not in plain.teacher_info.teacher
    assert f"           {_ROWS} rows" in "\n".join(summary.describe(padded))


def test_k_is_at_most_the_number_of_tokens(examples_dir, padded_dir, vocab, tmp_path) -> None:
    cache = make_cache(tmp_path / "cache", examples_dir, padded_dir, truncation_factor=10_000)
    assert manifest.load(cache).teacher_info.truncation_factor == len(vocab)


def _config(cache: pathlib.Path, output_dir: pathlib.Path, **changes) -> DistillConfig:
    return DistillConfig(
        **{
            "input_dir": cache,
            "output_dir": output_dir,
            "losses": {"soft_cross_entropy": 1.0},
            "train_batch_size": 8,
            "eval_batch_size": 8,
            "num_train_steps": 2,
            **changes,
        }
    )


@pytest.mark.long
@pytest.mark.parametrize("is_cut", [True, False])
def test_student_of_a_padded_model_has_no_unused_rows(
    is_cut: bool, teacher_dir, padded_dir, cache_dir, vocab, tmp_path
) -> None:
    """Its weights equal those of a student of the model without padding."""
    weights = []
    for name, model in (("padded", padded_dir), ("plain", teacher_dir)):
        start = {"init_from": model, "student_layers": 1} if is_cut else {"student": model}
        training.distill(_config(cache_dir, tmp_path / name, student=StudentConfig(**start)))
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["vocab_size"] == len(vocab)
    for name, value in weights[1].items():
        np.testing.assert_array_equal(weights[0][name], value)


@pytest.mark.long
def test_live_teacher_gives_unused_rows_no_mass(
    teacher_dir, padded_dir, examples_dir, tmp_path
) -> None:
    reports = [
        training.distill(
            _config(
                examples_dir,
                tmp_path / "student",
                teacher=teacher,
                student=StudentConfig(student=teacher_dir),
                do_train=False,
            )
        )
        for teacher in (padded_dir, teacher_dir)
    ]
    for name in reports[0].keys() - {"examples_per_second"}:
        assert reports[0][name] == pytest.approx(reports[1][name], rel=1e-5), name


@pytest.mark.long
def test_tools_accept_a_padded_teacher(
    padded_cache_dir, padded_dir, examples_dir, tmp_path, capsys
) -> None:
    teacher = f"--teacher={padded_dir}"
    flags = (f"--input_dir={padded_cache_dir}", teacher)
    report = tmp_path / "report.json"
    measure = ["fidelity_report", *flags, "--sample=12", f"--output={report}"]
    assert fidelity_report.main(measure) == 0
    assert json.loads(report.read_text())["kl_divergence"]["1"]["max"] < 1e-4
    broken = tmp_path / "cache"
    shutil.copytree(padded_cache_dir, broken)
    content = read_folder(broken)
    shard = manifest.load(broken).shards[0].file
    (broken / shard).write_bytes(content[shard][:-1])
    flags = [f"--input_dir={broken}", teacher, "--sample_examples=12"]
    repair = ["--repair", f"--examples={examples_dir}"]
    assert verify_cache.main(["verify_cache", *flags, *repair]) == 0, capsys.readouterr().err
    assert (broken / shard).read_bytes() == content[shard]
    assert verify_cache.main(["verify_cache", *flags]) == 0
    plan = ["plan_cache", f"--input_dir={examples_dir}", teacher, "--sample=12"]
    assert plan_cache.main([*plan, "--truncation_factors=8"]) == 0


def test_prepare_compares_tokens_with_rows(
    padded_dir, examples_dir, examples_config, vocab, tmp_path, capsys
) -> None:
    """More rows than tokens print a note and change no byte. Fewer rows are refused."""
    changes = {"vocab_file": padded_dir, "output_dir": tmp_path / "examples"}
    create_masked_examples(dataclasses.replace(examples_config, **changes))
    assert f"note: {_ROWS} rows" in capsys.readouterr().err
    assert read_folder(tmp_path / "examples") == read_folder(examples_dir)
    model = tmp_path / "model"
    shutil.copytree(padded_dir, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": len(vocab) - 1}))
    changes = {"vocab_file": model, "output_dir": tmp_path / "none"}
    with pytest.raises(InputError) as error:
        create_masked_examples(dataclasses.replace(examples_config, **changes))
    assert error.value.subject == f"{model / 'config.json'}: vocab_size"
    assert error.value.received == len(vocab) - 1
    assert not (tmp_path / "none").exists()


def test_padded_student_may_have_a_reduced_vocabulary(
    tmp_path, padded_dir, cache_dir, vocab
) -> None:
    cache = cache_input.open_cache(cache_dir, None)
    model = tmp_path / "model"
    shutil.copytree(padded_dir, model)
    reduced_vocab = [token for token in vocab if token != "##z"]
    (model / "vocab.txt").write_bytes("\n".join(reduced_vocab).encode())
    source, subset = cache_tokenizer.fit_student(cache, find_model(model))
    assert (source.config.vocab_size, source.unused_rows) == (len(reduced_vocab), _ROWS + 1)
    assert subset.vocab.size == len(reduced_vocab) and subset.table[vocab.index("##z")] == -1


def test_other_tokens_are_refused_and_a_missing_tokenizer_is_noted(
    tmp_path, padded_dir, teacher_dir, cache_dir, vocab, capsys
) -> None:
    cache = cache_input.open_cache(cache_dir, None)
    model = tmp_path / "model"
    shutil.copytree(padded_dir, model)
    other_vocabs = {"order": [*vocab[:5], *vocab[:4:-1]], "more": [*vocab, "new"]}
    for tokens in other_vocabs.values():
        (model / "vocab.txt").write_bytes("\n".join(tokens).encode())
        for fit in (cache_tokenizer.fit_vocab, cache_tokenizer.fit_student):
            with pytest.raises(InputError) as error:
                fit(cache, find_model(model))
            assert cache.manifest.vocab.sha256 in error.value.expected
            assert str(model / "vocab.txt") in error.value.received
    assert not capsys.readouterr().err
    # Without a tokenizer, the unused rows are unknown.
    (model / "vocab.txt").unlink()
    with pytest.raises(InputError) as error:
        cache_tokenizer.fit_vocab(cache, find_model(model))
    assert str(len(vocab) + _ROWS) in error.value.received and error.value.hint is not None
    bare = tmp_path / "bare"
    shutil.copytree(teacher_dir, bare)
    (bare / "vocab.txt").unlink()
    for fit in (cache_tokenizer.fit_vocab, cache_tokenizer.fit_student):
        fit(cache, find_model(bare))
        assert capsys.readouterr().err.startswith(f"note: {bare} has no tokenizer")


def test_tokenizer_of_a_google_checkpoint_is_compared(
    tmp_path, teacher_dir, cache_dir, vocab
) -> None:
    """The vocabulary is in the directory of `bert_config_file`."""
    (tmp_path / "bert_config.json").write_bytes((teacher_dir / "config.json").read_bytes())
    start = StudentConfig(bert_config_file=tmp_path / "bert_config.json")
    config = _config(cache_dir, tmp_path / "student", student=start)
    assert prepare(config).start.config.vocab_size == len(vocab)
    (tmp_path / "vocab.txt").write_bytes("\n".join(reversed(vocab)).encode())
    with pytest.raises(InputError) as error:
        prepare(config)
    assert error.value.setting == "bert_config_file" or error.value.subject == "bert_config_file"


def test_padding_among_the_unused_rows_is_refused(teacher_dir) -> None:
    source = find_model(teacher_dir)
    config = dataclasses.replace(source.config, pad_token_id=source.config.vocab_size - 1)
    with pytest.raises(InputError) as error:
        dataclasses.replace(source, config=config).with_vocab_size(9)
    assert error.value.subject == "pad_token_id"
