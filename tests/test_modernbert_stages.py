"""A ModernBERT with byte-level BPE through all three stages, on both backends."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from data_specs.records import INPUT_IDS, INPUT_MASK, MASKED_LM_POSITIONS, SEGMENT_IDS
from pipeline import create_pretraining_data, create_teacher_output_data, run_distill
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import LocalLocation
from pipeline.distill.preparation import prepare
from pipeline.models.families import FAMILIES
from pipeline.models.formats.model_directory import find_model, load_masked_lm
from pipeline.tokenizers.loading import load_tokenizer
from tests.conftest import run_python, save_tiny_bert
from tests.models.test_peers import assert_parity, load_torch

# Inputs are longer than the window. The layers are global, local, local, global, local.
MODERNBERT = {
    **FAMILIES["modernbert"].config_defaults,
    "model_type": "modernbert",
    "type_vocab_size": 0,
    "pad_token_id": 1,
    "local_attention": 8,
    "num_layers": 5,
}
JAX = pytest.param(
    "jax",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("jax") is None, reason="JAX is not installed"
    ),
)


def _main(command, *arguments: str) -> int:
    return command.main([command.__name__, *arguments])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, bpe_file) -> pathlib.Path:
    """A random teacher with its tokenizer; read only."""
    folder = tmp_path_factory.mktemp("modernbert")
    tokenizer = load_tokenizer(LocalLocation(bpe_file), do_lower_case=None)
    (folder / "ids.txt").write_text("\n".join(map(str, range(len(tokenizer.vocab)))))
    save_tiny_bert(folder / "teacher", folder / "ids.txt", seed=5, **MODERNBERT)
    (folder / "teacher" / "vocab.txt").unlink()
    (folder / "teacher" / "tokenizer.json").write_bytes(bpe_file.read_bytes())
    return folder / "teacher"


@pytest.fixture(scope="module")
def examples(tmp_path_factory, teacher, corpus_dir) -> pathlib.Path:
    """Masked examples with the teacher's tokenizer; read only."""
    folder = tmp_path_factory.mktemp("modernbert_examples") / "examples"
    assert not _main(
        create_pretraining_data,
        f"--input_dir={corpus_dir}",
        f"--vocab_file={teacher}",
        f"--output_dir={folder}",
        "--max_seq_length=48",
        "--max_predictions_per_seq=8",
        "--dupe_factor=1",
        "--max_workers=1",
        "--segments=single",
    )
    return folder


def _run(backend: str, command, *arguments: str) -> None:
    """Runs a command; JAX needs a new process."""
    if backend == "tensorflow":
        assert not _main(command, *arguments)
        return
    flags = "--backend=jax", *arguments
    run_python("-m", command.__name__, *flags, JAX_PLATFORMS="cpu")


def _losses(student: pathlib.Path, split: str) -> list[float]:
    lines = map(json.loads, (student / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == split]


def _batch(vocab_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(8)
    mask = np.ones((3, 40), np.int32)
    mask[1, 30:] = 0
    return {
        INPUT_IDS: random.integers(0, vocab_size, (3, 40)).astype(np.int32),
        INPUT_MASK: mask,
        SEGMENT_IDS: np.zeros((3, 40), np.int32),
        MASKED_LM_POSITIONS: np.array([[1, 9, 28]] * 3, np.int32),
    }


@pytest.fixture(scope="module", params=["tensorflow", JAX])
def student(request, tmp_path_factory, teacher, examples) -> pathlib.Path:
    """A narrower student of 20 steps from a teacher cache; read only."""
    folder = tmp_path_factory.mktemp("modernbert_student")
    folders = f"--input_dir={examples}", f"--output_dir={folder / 'cache'}"
    _run(
        request.param,
        create_teacher_output_data,
        *folders,
        f"--teacher={teacher}",
        "--truncation_factor=8",
        "--cache_hidden_states=2,5",
    )
    _run(
        request.param,
        run_distill,
        f"--input_dir={folder / 'cache'}",
        f"--init_from={teacher}",
        f"--output_dir={folder / 'student'}",
        "--layer_map=0,1",
        "--student_hidden_size=16",
        "--losses=soft_cross_entropy=1,hidden_cosine=0.1",
        "--layer_groups=2:1,5:2",
        "--num_train_steps=20",
        "--train_batch_size=4",
        "--learning_rate=3e-3",
        "--log_steps=5",
    )
    return folder / "student"


def test_modernbert_student_learns_from_a_cache(student, teacher) -> None:
    losses = _losses(student, "train")
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    config = find_model(LocalLocation(student)).config
    assert (config.num_hidden_layers, config.hidden_size, config.local_attention) == (2, 16, 8)
    assert config.model_type == "modernbert"
    again = load_tokenizer(LocalLocation(student), do_lower_case=None)
    assert again.vocab == load_tokenizer(LocalLocation(teacher), do_lower_case=None).vocab


@pytest.mark.peers
def test_transformers_opens_the_modernbert_student(student) -> None:
    model = load_masked_lm(find_model(LocalLocation(student)))
    assert_parity(model, load_torch(student), _batch(model.config.vocab_size), atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "backend", ["tensorflow", pytest.param("jax", marks=[*JAX.marks, pytest.mark.slow])]
)
def test_live_modernbert_teacher_gives_maps_and_states(
    tmp_path, teacher, examples, backend: str
) -> None:
    _run(
        backend,
        run_distill,
        f"--input_dir={examples}",
        f"--init_from={teacher}",
        f"--teacher={teacher}",
        f"--output_dir={tmp_path / 'student'}",
        "--student_layers=2",
        "--losses=kl_divergence=1,hidden_cosine=1,attention_mse=1",
        "--layer_groups=1:1,5:2",
        "--num_train_steps=3",
        "--train_batch_size=4",
    )
    assert np.isfinite(_losses(tmp_path / "student", "train")).all()
    config = find_model(LocalLocation(tmp_path / "student")).config
    assert config.num_hidden_layers == 2


def test_layers_of_another_type_are_refused(tmp_path, teacher, examples, capsys) -> None:
    status = _main(
        run_distill,
        f"--input_dir={examples}",
        f"--init_from={teacher}",
        f"--teacher={teacher}",
        f"--output_dir={tmp_path / 'student'}",
        "--layer_map=0,3",
        "--losses=kl_divergence=1",
        "--num_train_steps=3",
    )
    error = capsys.readouterr().err
    assert status == 1 and "error: --layer_map" in error and "Traceback" not in error
    assert not (tmp_path / "student").exists()


def test_attention_losses_on_long_inputs_are_refused(tmp_path, bpe_file, corpus_dir) -> None:
    tokenizer = load_tokenizer(LocalLocation(bpe_file), do_lower_case=None)
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(len(tokenizer.vocab)))))
    changes = MODERNBERT | {"max_position_embeddings": 2048}
    teacher = save_tiny_bert(tmp_path / "teacher", tmp_path / "ids.txt", seed=5, **changes)
    (teacher / "vocab.txt").unlink()
    (teacher / "tokenizer.json").write_bytes(bpe_file.read_bytes())
    examples = tmp_path / "examples"
    assert not _main(
        create_pretraining_data,
        f"--input_dir={corpus_dir}",
        f"--vocab_file={teacher}",
        f"--output_dir={examples}",
        "--max_seq_length=1025",
        "--dupe_factor=1",
        "--max_workers=1",
        "--segments=single",
    )
    values = run_distill.define_flags()
    settings = (f"--input_dir={examples}", f"--init_from={teacher}", "--student_layers=1")
    settings += (f"--teacher={teacher}", f"--output_dir={tmp_path / 'student'}")
    values(["run_distill", *settings, "--losses=attention_mse=1"])
    config = run_distill.read_config(values)
    with pytest.raises(InputError) as error:
        prepare(config)
    assert error.value.subject == Setting("losses")
    assert "attention_mse" in error.value.received and "1,025" in error.value.received
    prepare(dataclasses.replace(config, losses={"hidden_cosine": 1.0}))
