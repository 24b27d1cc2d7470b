"""Tests of prepare with a model directory that has two tokenizers, and of its notes."""

import dataclasses
import json
import pathlib

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError
from pipeline.masking.masked_examples import create_masked_examples
from tests.conftest import read_folder


def _write_two(folder: pathlib.Path, vocab: list[str], tokens: list[str], lowercase: bool) -> None:
    """Writes a `vocab.txt` and a `tokenizer.json`, whose tokens may differ."""
    folder.mkdir()
    (folder / "vocab.txt").write_bytes(("\n".join(vocab) + "\n").encode())
    ids = {token: index for index, token in enumerate(tokens)}
    fast = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.save(str(folder / "tokenizer.json"))


def test_tokenizer_json_is_used_if_two_tokenizers_differ(
    examples_config, vocab, examples_dir, tmp_path, capsys
) -> None:
    """If the two agree, vocab.txt is used, and the output has the same bytes."""

    def prepared(name: str, tokens: list[str] = vocab, *, lowercase: bool = True, **changes):
        _write_two(tmp_path / name, vocab, tokens, lowercase)
        paths = {"vocab_file": tmp_path / name, "output_dir": tmp_path / f"{name}-examples"}
        made = create_masked_examples(dataclasses.replace(examples_config, **paths, **changes))
        return made, capsys.readouterr().err

    same, notes = prepared("same")
    assert "note:" not in notes
    assert read_folder(tmp_path / "same-examples") == read_folder(examples_dir)
    other, notes = prepared("other", lowercase=False)
    assert notes.count("note:") == 1 and "tokenizer.json" in notes
    assert other.tokenizer_files == ("tokenizer.json", "tokenizer_config.json")
    assert other.statistics["unknown_tokens"] > same.statistics["unknown_tokens"]
    assert other.vocab.size == same.vocab.size
    other, notes = prepared("numbers", [*vocab[:5], *vocab[:4:-1]])
    assert notes.count("note:") == 1 and other.vocab != same.vocab
    # The user's `do_lower_case` decides.
    chosen, notes = prepared("chosen", lowercase=False, do_lower_case=True)
    assert notes.count("note:") == 1
    assert (chosen.tokenizer_files, chosen.splits) == (same.tokenizer_files, same.splits)


def test_an_unreadable_document_does_not_count_as_a_difference(
    examples_config, vocab, tmp_path, capsys
) -> None:
    """The document is reported later, when documents are masked."""
    _write_two(tmp_path / "model", vocab, vocab, lowercase=True)
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"content": 1}\n', encoding="utf-8")
    changes = {
        "corpora": (CorpusSource(input_dir=str(folder)),),
        "output_dir": tmp_path / "examples",
        "vocab_file": tmp_path / "model",
    }
    with pytest.raises(InputError) as error:
        create_masked_examples(dataclasses.replace(examples_config, **changes))
    assert "rows.jsonl" in str(error.value) and "note:" not in capsys.readouterr().err


def test_settings_that_change_tokens_are_in_the_manifest(
    examples_config, vocab_file, tmp_path
) -> None:
    """Other settings are not, so that other run configurations do not change."""
    (tmp_path / "vocab.txt").write_bytes(vocab_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"strip_accents": false}')
    changes = {"vocab_file": tmp_path / "vocab.txt", "output_dir": tmp_path / "examples"}
    config = dataclasses.replace(examples_config, **changes)
    assert create_masked_examples(config).flags["strip_accents"] is False
    (tmp_path / "tokenizer_config.json").write_text('{"strip_accents": true}')
    with pytest.raises(InputError) as error:
        create_masked_examples(config)
    assert "strip_accents" in error.value.received


@pytest.mark.parametrize(("padding", "count"), [(0, 0), (1, 1)])
def test_a_note_names_another_padding_of_the_model(
    examples_config, vocab, tmp_path, capsys, padding: int, count: int
) -> None:
    (tmp_path / "vocab.txt").write_bytes(("\n".join(vocab) + "\n").encode())
    settings = {"vocab_size": len(vocab), "pad_token_id": padding}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    changes = {"vocab_file": tmp_path, "output_dir": tmp_path / "examples"}
    create_masked_examples(dataclasses.replace(examples_config, **changes))
    notes = [line for line in capsys.readouterr().err.split("\n") if line.startswith("note:")]
    assert len(notes) == count == sum("pad_token_id" in note for note in notes)
