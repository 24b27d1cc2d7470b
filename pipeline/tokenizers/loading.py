"""The tokenizer that a file or a model directory names."""

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.tokenizers import sentencepiece_model, tokenizer_json, wordpiece
from pipeline.tokenizers.settings import MODEL_CONFIG_FILE, SETTINGS_FILES, read_settings
from pipeline.tokenizers.tokens import TOKENIZER_FILE, Tokenizer
from pipeline.tokenizers.vocabulary import VocabInfo, read_tokens, vocab_info

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
READ_FILES = (*FILE_NAMES, *SETTINGS_FILES)


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
        do_lower_case: whether to lower-case text; None for the setting in the files next
            to it, without which only WordPiece lower-cases, and not with a cased vocabulary.

    Raises:
        InputError: it cannot be read, lacks a token that it or its settings name, has
            settings that are not supported, or a normaliser that `do_lower_case` contradicts.
    """
    path = find_vocab_file(vocab_file)
    settings = read_settings(path)
    if path.suffix in _SENTENCEPIECE_SUFFIXES:
        return sentencepiece_model.load_sentencepiece(path, settings, do_lower_case=do_lower_case)
    if path.suffix != ".json":
        return wordpiece.load_wordpiece(path, settings, do_lower_case=do_lower_case)
    if do_lower_case is not None:
        expected = f"unset, as {path} has a normaliser of its own"
        raise InputError(Setting("do_lower_case"), expected, do_lower_case)
    return tokenizer_json.load_tokenizer_json(path, settings)


def read_vocab(path: Location) -> tuple[str, ...]:
    """Returns the tokens of a tokenizer's file in the order of their ids.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix == ".json":
        return tokenizer_json.read_vocab(path)[0]
    settings = read_settings(path)
    if path.suffix in _SENTENCEPIECE_SUFFIXES:
        pieces, _ = sentencepiece_model.read_pieces(path)
        return sentencepiece_model.number_tokens(pieces, settings.model.get("model_type"))[0]
    return settings.extend(read_tokens(path))


def read_vocab_info(path: Location) -> VocabInfo:
    """Returns the identity of the vocabulary in a tokenizer's file.

    Raises:
        InputError: it cannot be read.
    """
    return vocab_info(read_vocab(path))


def _model_setting(vocab_file: Location, name: str) -> int | None:
    """Returns a whole number of the configuration of the model in a directory; None for none."""
    path = vocab_file / MODEL_CONFIG_FILE
    value = path.read_json().get(name) if path.is_file() else None
    return value if isinstance(value, int) else None


def find_other_padding(vocab_file: Location, tokenizer: Tokenizer) -> int | None:
    """Returns the model's `pad_token_id` in a directory where the tokenizer has another."""
    found = _model_setting(vocab_file, "pad_token_id")
    return None if found == tokenizer.special_ids.get("pad", found) else found


def count_unused_rows(vocab_file: Location, vocab_size: int) -> int:
    """Returns how many rows more than `vocab_size` the model in a directory has; 0 for no model.

    Raises:
        InputError: it has fewer.
    """
    path = vocab_file / MODEL_CONFIG_FILE
    rows = _model_setting(vocab_file, "vocab_size")
    if rows is None:
        return 0
    if rows < vocab_size:
        expected = f"at least {vocab_size}, the tokens of {find_vocab_file(vocab_file)}"
        raise InputError(f"{path}: vocab_size", expected, rows)
    return rows - vocab_size
