"""Loading of a tokenizer from a file or a model directory."""

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.tokenizers import sentencepiece_model, tokenizer_json, wordpiece
from pipeline.tokenizers.settings import MODEL_CONFIG_FILE, SETTINGS_FILES, read_settings
from pipeline.tokenizers.tokens import TOKENIZER_FILE, Tokenizer
from pipeline.tokenizers.vocabulary import VocabInfo, read_tokens, vocab_info

_SENTENCEPIECE_SUFFIXES = (".model", ".spm")
# Names of tokenizer files in a model directory, in order of preference.
FILE_NAMES = (
    wordpiece.VOCAB_FILE,
    TOKENIZER_FILE,
    sentencepiece_model.MODEL_FILE,
    sentencepiece_model.XLM_ROBERTA_FILE,
    "tokenizer.model",
    "spm.model",
)
# All files of a model directory from which a tokenizer is read.
READ_FILES = (*FILE_NAMES, *SETTINGS_FILES)


def tokenizer_files(directory: Location) -> tuple[Location, ...]:
    """Returns the tokenizer files of a model directory, in order of preference."""
    paths = (directory / name for name in FILE_NAMES)
    return tuple(path for path in paths if path.is_file())


def find_vocab_file(path: Location) -> Location:
    """Returns a tokenizer file: the path itself, or the preferred file of a model directory.

    Raises:
        InputError: the directory has no tokenizer file.
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
        vocab_file: a SentencePiece model (`.model`, `.spm`), a `tokenizer.json`, a `vocab.txt`,
            or a model directory with one of them. Next to the `config.json` of an XLM-RoBERTa,
            a SentencePiece model gets the token ids of XLM-RoBERTa.
        do_lower_case: whether to lower-case text; None for the setting in the files next to
            `vocab_file`. Without such a setting, only WordPiece with an uncased vocabulary
            lower-cases.

    Raises:
        InputError: the file cannot be read, lacks a token that is required, has settings that
            are not supported, or has a normalizer that `do_lower_case` contradicts.
    """
    path = find_vocab_file(vocab_file)
    settings = read_settings(path)
    if path.suffix in _SENTENCEPIECE_SUFFIXES:
        return sentencepiece_model.load_sentencepiece(path, settings, do_lower_case=do_lower_case)
    if path.suffix != ".json":
        return wordpiece.load_wordpiece(path, settings, do_lower_case=do_lower_case)
    if do_lower_case is not None:
        expected = f"unset, because {path} has its own normalizer"
        raise InputError(Setting("do_lower_case"), expected, do_lower_case)
    return tokenizer_json.load_tokenizer_json(path, settings)


def read_vocab(path: Location) -> tuple[str, ...]:
    """Returns the tokens of a tokenizer file in the order of their ids.

    Raises:
        InputError: the file cannot be read.
    """
    if path.suffix == ".json":
        return tokenizer_json.read_vocab(path)[0]
    settings = read_settings(path)
    if path.suffix in _SENTENCEPIECE_SUFFIXES:
        pieces, _ = sentencepiece_model.read_pieces(path)
        return sentencepiece_model.number_tokens(pieces, settings.model.get("model_type"))[0]
    return settings.extend(read_tokens(path))


def read_vocab_info(path: Location) -> VocabInfo:
    """Returns the identity of the vocabulary in a tokenizer file.

    Raises:
        InputError: the file cannot be read.
    """
    return vocab_info(read_vocab(path))


def _model_setting(vocab_file: Location, name: str) -> int | None:
    """Returns an integer from the `config.json` of a model directory; None if it has none."""
    path = vocab_file / MODEL_CONFIG_FILE
    value = path.read_json().get(name) if path.is_file() else None
    return value if isinstance(value, int) else None


def find_other_padding(vocab_file: Location, tokenizer: Tokenizer) -> int | None:
    """Returns the `pad_token_id` of the model in a directory; None if the tokenizer agrees."""
    model_id = _model_setting(vocab_file, "pad_token_id")
    return None if model_id == tokenizer.special_ids.get("pad", model_id) else model_id


def count_unused_rows(vocab_file: Location, vocab_size: int) -> int:
    """Returns the number of rows of a directory's model beyond `vocab_size`; 0 without a model.

    Raises:
        InputError: the model has fewer rows than `vocab_size`.
    """
    path = vocab_file / MODEL_CONFIG_FILE
    rows = _model_setting(vocab_file, "vocab_size")
    if rows is None:
        return 0
    if rows < vocab_size:
        expected = f"at least {vocab_size}, the number of tokens in {find_vocab_file(vocab_file)}"
        raise InputError(f"{path}: vocab_size", expected, rows)
    return rows - vocab_size
