"""Vocabularies above 65,536 tokens, whose ids exceed uint16, in all stages."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from data_specs import records
from pipeline import create_pretraining_data, create_teacher_output_data, run_distill
from pipeline.models.formats.model_directory import find_model, load_masked_lm
from pipeline.storage import cache_input, manifest, reader, serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import CODECS
from tests.conftest import LINES, SPECIAL, save_tiny_bert

SHARED = pathlib.Path(__file__).parents[2] / "shared"
LAST_UINT16 = 65_535
TINY = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
LENGTHS = ("--max_seq_length=48", "--max_predictions_per_seq=8", "--doc_stride=46")


def _main(command, *arguments: str) -> None:
    assert command.main([command.__name__, *arguments]) == 0


def _examples(directory: pathlib.Path) -> Iterator[dict[str, bytes]]:
    """Yields the decoded records of both splits."""
    for shards in manifest.load(directory).splits.values():
        for shard in shards:
            for record in serialization.read_records(directory / shard.file):
                yield serialization.decode_example(record)


def _ids(example: dict[str, bytes], name: str) -> np.ndarray:
    return np.frombuffer(example[name], "<i4")


def _restored(example: dict[str, bytes]) -> np.ndarray:
    """Returns an example's tokens before masking."""
    ids = _ids(example, records.INPUT_IDS).copy()
    positions = np.frombuffer(example[records.MASKED_LM_POSITIONS], "<u2")
    ids[positions] = _ids(example, records.MASKED_LM_IDS)
    return ids


def _teachers_topk(teacher, example: dict[str, bytes], k: int) -> np.ndarray:
    """Returns the k best ids at each masked position, from the teacher's dense logits."""
    ids = _ids(example, records.INPUT_IDS)
    positions = np.frombuffer(example[records.MASKED_LM_POSITIONS], "<u2")
    batch = {
        records.INPUT_IDS: ids[None],
        records.INPUT_MASK: np.ones((1, len(ids)), np.int32),
        records.SEGMENT_IDS: np.zeros((1, len(ids)), np.int32),
        records.MASKED_LM_POSITIONS: positions[None].astype(np.int32),
    }
    return np.argsort(-np.asarray(teacher(batch))[0], axis=-1)[:, :k]


def test_ids_above_uint16_survive_prepare_and_capture(tmp_path) -> None:
    """Every word of the text is one token, and the number in its name gives its id."""
    words = [f"t{number}" for number in range(70_000 - len(SPECIAL))]
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join([*SPECIAL, *words]) + "\n", encoding="utf-8")
    random = np.random.default_rng(3)
    documents = [random.choice(words[60_000:], 40).tolist() for _ in range(12)]
    text = "\n\n".join(" ".join(document) for document in documents)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    teacher = save_tiny_bert(tmp_path / "teacher", vocab_file, seed=2, num_layers=1, **TINY)
    examples, cache = tmp_path / "examples", tmp_path / "cache"
    _main(
        create_pretraining_data,
        f"--input_dir={tmp_path / 'text.txt'}",
        f"--vocab_file={vocab_file}",
        f"--output_dir={examples}",
        "--segments=single",
        "--dupe_factor=2",
        "--max_workers=1",
        *LENGTHS,
    )
    whole = {" ".join(document) for document in documents}
    for example in _examples(examples):
        restored = _restored(example)
        assert (restored[0], restored[-1]) == (2, 3)
        tokens = " ".join(f"t{index - len(SPECIAL)}" for index in restored[1:-1])
        assert any(f" {tokens} " in f" {document} " for document in whole)
    labels = np.concatenate([_ids(e, records.MASKED_LM_IDS) for e in _examples(examples)])
    assert (labels > LAST_UINT16).mean() > 0.3 and labels.max() < 70_000
    _main(
        create_teacher_output_data,
        f"--input_dir={examples}",
        f"--teacher={teacher}",
        f"--output_dir={cache}",
        "--truncation_factor=8",
        "--predict_batch_size=8",
    )
    codec, model = CODECS["float16"](70_000, 8), load_masked_lm(find_model(teacher))
    decoded = []
    for example in _examples(cache):
        decoded.append(codec.decode(example, len(_ids(example, records.MASKED_LM_IDS)))[0])
        assert example[records.TOPK_IDS] == decoded[-1].astype("<i4").tobytes()
        np.testing.assert_array_equal(decoded[-1], _teachers_topk(model, example, 8))
    assert (np.concatenate(decoded) > LAST_UINT16).any()


@pytest.mark.shared
def test_multilingual_vocabulary_runs_through_three_stages(tmp_path) -> None:
    vocab_file = SHARED / "data" / "vocab" / "bert_multi_cased_119547.txt"
    text = "\n\n".join("\n".join(LINES[first : first + 4]) for first in range(len(LINES) - 3))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    teacher = save_tiny_bert(tmp_path / "teacher", vocab_file, seed=2, num_layers=2, **TINY)
    examples, cache, student = (tmp_path / name for name in ("examples", "cache", "student"))
    _main(
        create_pretraining_data,
        f"--input_dir={tmp_path / 'text.txt'}",
        f"--vocab_file={vocab_file}",
        "--do_lower_case=False",
        f"--output_dir={examples}",
        "--dupe_factor=1",
        "--max_workers=1",
        *LENGTHS,
    )
    _main(
        create_teacher_output_data,
        f"--input_dir={examples}",
        f"--teacher={teacher}",
        f"--output_dir={cache}",
        "--truncation_factor=16",
    )
    made = manifest.load(cache)
    assert made.vocab.size == 119_547
    for name in (records.INPUT_IDS, records.TOPK_IDS):
        ids = np.concatenate([_ids(example, name) for example in _examples(cache)])
        assert (ids > LAST_UINT16).any() and ids.min() >= 0 and ids.max() < 119_547
    # Training reads the same ids.
    (batch,) = reader.evaluation_records(CacheInput(cache, made), "eval").batch(1).take(1)
    parsed = reader.parse_batch(batch, made, cache_input.open_codec(cache, made))
    first = serialization.decode_example(batch.numpy()[0])
    count = len(_ids(first, records.MASKED_LM_IDS))
    topk = np.asarray(parsed[records.TOPK_IDS])[0, :count]
    np.testing.assert_array_equal(topk.ravel(), _ids(first, records.TOPK_IDS))
    _main(
        run_distill,
        f"--input_dir={cache}",
        f"--init_from={teacher}",
        "--student_layers=1",
        f"--output_dir={student}",
        "--num_train_steps=2",
        "--train_batch_size=4",
    )
    before, after = (find_model(folder).read_weights() for folder in (teacher, student))
    words = "encoder/embeddings/word_embeddings"
    moved = np.flatnonzero((before[words] != after[words]).any(axis=1))
    assert after[words].shape == (119_547, 8) and (moved > LAST_UINT16).any()
