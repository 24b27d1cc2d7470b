"""Fixtures of the distillation tests: a small run, which tests change in single settings."""

import pytest

from pipeline.base.location import Location
from pipeline.distill.settings import DistillConfig, StudentConfig
from tests.conftest import save_tiny_bert


@pytest.fixture(scope="session")
def shared_run(cache_dir, teacher_dir) -> dict:
    """Settings of a run of twelve steps: two of the teacher's three layers, with dropout."""
    return {
        "student": StudentConfig(init_from=teacher_dir, student_layers=2),
        "losses": {"soft_cross_entropy": 1.0, "probability_cosine": 1.0},
        "input_dir": cache_dir,
        "train_batch_size": 8,
        "eval_batch_size": 8,
        "num_train_steps": 12,
        "learning_rate": 1e-3,
        "save_checkpoints_steps": 5,
        "log_steps": 3,
        "shuffle_buffer_size": 64,
    }


@pytest.fixture(scope="session")
def still_teacher_dir(tmp_path_factory, vocab_file) -> Location:
    """A teacher without dropout, so that a student made from it has no dropout."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return save_tiny_bert(tmp_path_factory.mktemp("still"), vocab_file, seed=7, **rates)


@pytest.fixture
def own_settings() -> dict:
    """Changes of a test module to the settings of the shared run."""
    return {}


@pytest.fixture
def config(shared_run, own_settings, tmp_path) -> DistillConfig:
    """The module's run, not yet started."""
    return DistillConfig(output_dir=str(tmp_path / "student"), **{**shared_run, **own_settings})
