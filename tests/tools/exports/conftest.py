"""Fixtures for exports: a text, a batch with two segments, and the tool's command."""

import numpy as np
import pytest

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.base.location import Location
from tests.conftest import SENTENCES
from tools import export_student


@pytest.fixture(scope="session")
def sentences(tmp_path_factory) -> Location:
    """A file with the tests' sentences on separate lines, with empty lines between them."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("\n\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


def run_export(**settings: object) -> int:
    """Runs the command with two timed runs, and returns its status."""
    flags = (f"--{name}={value}" for name, value in settings.items())
    return export_student.main(["export_student", "--repeats=2", *flags])


def make_batch(vocab_size: int) -> dict[str, np.ndarray]:
    """Returns a batch of three inputs with two segments, one of which is padded."""
    random = np.random.default_rng(2)
    mask = np.ones((3, 23), np.int32)
    mask[1, 11:] = 0
    segments = np.zeros((3, 23), np.int32)
    segments[:, 9:] = 1
    ids = random.integers(0, vocab_size, (3, 23)).astype(np.int32)
    return {INPUT_IDS: ids, INPUT_MASK: mask, SEGMENT_IDS: segments}
