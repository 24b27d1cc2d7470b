"""The tokenizer that a file or a model directory names."""

from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.tokenizers import sentencepiece_model, tokenizer_json, wordpiece
from pipeline.tokenizers.tokens import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from pipeline.tokenizers.vocabulary import VocabInfo, read_tokens, vocab_info

# The settings of the model in a Hugging Face model directory.
_MODEL_CONFIG_FILE = "config.json"
_SENTENCEPIECE_SUFFIXES = (".model", ".spm")
# The names of tokenizer files in a model directory, the best first.
FILE_NAMES = (
    wordpiece.VOCAB_FILE,
    TOKENIZER_FILE,
    sentencepiece_model.MODEL_FILE,
    sentencepiece_model.XLM_ROBERTA_FILE,
    "tokenizer.model",
    "spm.model",
)
# All files of a model directory that a tokenizer is read from.
READ_FILES = (*FILE_NAMES, TOKENIZER_CONFIG_FILE, _MODEL_CONFIG_FILE)


def tokenizer_files(directory: Location) -> tuple[Location, ...]:
    """Returns the files of a model directory that describe its tokenizer, the best first."""
    paths = (directory / name for name in FILE_NAMES)
    return tuple(path for path in paths if path.is_file())


def find_vocab_file(path: Location) -> Location:
    """Returns a tokenizer's file: of a model directory, the best in it.

    Raises:
        InputError: the directory has none.
    """
    if not path.is_dir():
        return path
    files = tokenizer_files(path)
    if not files:
        raise InputError(path, f"one of {', '.join(FILE_NAMES)}", "none of them")
    return files[0]


def load_tokenizer(vocab_file: Location, *, do_lower_case: bool | None) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        vocab_file: a SentencePiece model (`.model`, `.spm`), a `tokenizer.json`,
            a `vocab.txt`, or a model directory that has one of them. Next to an
            XLM-RoBERTa's `config.json` a SentencePiece model is numbered as its.
        do_lower_case: whether to lower-case text; None for the setting in the file
            `tokenizer_config.json` next to it, without which only WordPiece lower-cases.

    Raises:
        InputError: it cannot be read, lacks a special token, or has a
            normaliser of its own that `do_lower_case` would contradict.
    """
    path = find_vocab_file(vocab_file)
    if path.suffix == ".json":
        if do_lower_case is not None:
            expected = f"none, as {path} has a normaliser of its own"
            raise InputError(Setting("do_lower_case"), expected, do_lower_case)
        return tokenizer_json.load_tokenizer_json(path)
    is_sentencepiece = path.suffix in _SENTENCEPIECE_SUFFIXES
    if do_lower_case is None:
        # A cased model must not lose its capitals.
        value = _setting_beside(path, TOKENIZER_CONFIG_FILE, "do_lower_case")
        do_lower_case = value if isinstance(value, bool) else not is_sentencepiece
    if not is_sentencepiece:
        return wordpiece.load_wordpiece(path, do_lower_case=do_lower_case)
    model_type = _setting_beside(path, _MODEL_CONFIG_FILE, "model_type")
    return sentencepiece_model.load_sentencepiece(
        path, do_lower_case=do_lower_case, model_type=model_type
    )


def _setting_beside(path: Location, name: str, key: str) -> Any:
    """Returns a setting from a file next to a tokenizer; None if it has none."""
    file = path.with_name(name)
    try:
        return file.read_json().get(key)
    except InputError:
        # No such file, or not one of settings.
        return None
    except OSError:
        # An unreadable local file has no setting; a store that does not answer is an error.
        if not file.is_local:
            raise
        return None


def read_vocab(path: Location) -> tuple[str, ...]:
    """Returns the tokens of a tokenizer's file in the order of their ids.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix == ".json":
        return tokenizer_json.read_vocab(path)[0]
    if path.suffix in _SENTENCEPIECE_SUFFIXES:
        pieces, _ = sentencepiece_model.read_pieces(path)
        model_type = _setting_beside(path, _MODEL_CONFIG_FILE, "model_type")
        return sentencepiece_model.number_tokens(pieces, model_type)[0]
    return read_tokens(path)


def read_vocab_info(path: Location) -> VocabInfo:
    """Returns the identity of the vocabulary in a tokenizer's file.

    Raises:
        InputError: it cannot be read.
    """
    return vocab_info(read_vocab(path))
