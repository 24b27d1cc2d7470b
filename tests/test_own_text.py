"""A user's own tokenizer and text in all three stages, and a refused tokenizer."""

import json
import pathlib

import pytest

from pipeline import create_pretraining_data, create_teacher_output_data, run_distill
from pipeline.base.location import LocalLocation
from pipeline.storage import manifest
from pipeline.tokenizers.loading import load_tokenizer, read_vocab_info
from tests.conftest import SENTENCES, save_tiny_bert

ROOT = pathlib.Path(__file__).parents[1]


def _main(command, *arguments: str) -> int:
    return command.main([command.__name__, *arguments])


# Fields that make the tiny BERT of the tests a RoBERTa.
ROBERTA = {
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "max_position_embeddings": 50,
}
XLM_ROBERTA = {**ROBERTA, "model_type": "xlm-roberta"}
SHARED_MODELS = ("xlnet_en_spiece", "xlnet_zh_spiece", "cluecorpussmall_spm")


@pytest.fixture(
    params=[
        "spiece_file",
        "bpe_file",
        "xlm_roberta_file",
        "camembert_file",
        *(pytest.param(name, marks=pytest.mark.shared) for name in SHARED_MODELS),
    ]
)
def tokenizer_file(request) -> pathlib.Path:
    """A SentencePiece model, a byte-level BPE, or a public model of the folder `shared`."""
    if request.param in SHARED_MODELS:
        return ROOT.parent / "shared" / "data" / "vocab" / f"{request.param}.model"
    return request.getfixturevalue(request.param)


@pytest.mark.long
def test_own_tokenizer_runs_through_three_stages(
    tokenizer_file, corpus_dir, tmp_path, capsys
) -> None:
    tokenizer = load_tokenizer(LocalLocation(tokenizer_file), do_lower_case=None)
    words = tmp_path / "words.txt"
    words.write_text("\n".join(map(str, range(len(tokenizer.vocab)))), encoding="utf-8")
    families = {"tokenizer.json": ROBERTA, "sentencepiece.bpe.model": XLM_ROBERTA}
    changes = families.get(tokenizer_file.name, {})
    if (settings := tokenizer_file.with_name("config.json")).is_file():
        changes = {**changes, **json.loads(settings.read_text())}
    teacher = save_tiny_bert(tmp_path / "teacher", words, seed=5, num_layers=2, **changes)
    (teacher / "vocab.txt").unlink()
    name = tokenizer_file.name if changes else "spiece.model"
    (teacher / name).write_bytes(tokenizer_file.read_bytes())
    examples, cache, student = (tmp_path / name for name in ("examples", "cache", "student"))
    assert not _main(
        create_pretraining_data,
        f"--input_dir={corpus_dir}",
        f"--vocab_file={teacher}",
        f"--output_dir={examples}",
        "--max_seq_length=48",
        "--max_predictions_per_seq=8",
        "--doc_stride=30",
        "--dupe_factor=1",
        "--max_workers=1",
        "--segments=single" if changes else "--segments=pair",
    )
    examples_manifest = manifest.load(examples)
    assert examples_manifest.special_ids == tokenizer.special_ids
    assert examples_manifest.vocab == tokenizer.info
    assert not _main(
        create_teacher_output_data,
        f"--input_dir={examples}",
        f"--teacher={teacher}",
        f"--output_dir={cache}",
        "--truncation_factor=8",
        # The teacher has random weights, which the command would refuse.
        "--force",
    )
    assert not _main(
        run_distill,
        f"--input_dir={cache}",
        f"--init_from={teacher}",
        "--student_layers=1",
        f"--output_dir={student}",
        "--num_train_steps=2",
        "--train_batch_size=4",
    )
    again = load_tokenizer(student, do_lower_case=None)
    for line in SENTENCES:
        assert again.tokenize(line).ids.tolist() == tokenizer.tokenize(line).ids.tolist()
    capsys.readouterr()
    # A student with another tokenizer of the same size is refused.
    changed_tokenizer = next(path for path in student.iterdir() if path.name == "tokenizer.json")
    content = json.loads(changed_tokenizer.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab["zzzzzz"] = vocab.pop(max(vocab, key=vocab.__getitem__))
        content["model"]["merges"] = []
    else:
        vocab[-1][0] = "zzzzzz"
    changed_tokenizer.write_text(json.dumps(content), encoding="utf-8")
    for path in student.glob("*.model"):
        # XLM-RoBERTa has its vocabulary in two files.
        assert read_vocab_info(path) == tokenizer.info
        path.unlink()
    arguments = (f"--input_dir={cache}", f"--student={student}", "--do_train=False")
    assert _main(run_distill, *arguments) == 1
    assert "error: --student: " in capsys.readouterr().err
