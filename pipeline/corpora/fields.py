"""Errors for missing or invalid text fields, with hints that name the likely ones."""

from collections.abc import Mapping, Sequence

from data_specs.corpora import CorpusSpec
from pipeline.base.errors import InputError

# Common names of text fields in public corpora, the most common first.
_COMMON_NAMES = ("text", "content", "body", "article", "document", "passage", "sentence")
_NO_SUGGESTION = "set `text_fields` to the fields that contain text"
_LISTS = "lists are not supported: join their texts to one field first"
# A shorter text is unlikely to be a document.
_MIN_DOCUMENT_CHARS = 20


def shown_names(names: Sequence[str]) -> str:
    """Returns the first eight names in one line, for messages."""
    return ",".join(" ".join(str(name).split())[:40] for name in names[:8]) or "none"


def missing_fields_error(
    spec: CorpusSpec,
    origin: object,
    names: Sequence[str],
    texts: Sequence[str],
    *,
    is_row: bool = False,
) -> InputError:
    """Returns the error for a row or a table in which text fields are missing.

    Args:
        spec: declaration that names the text fields.
        origin: the file, or the position of the row in it.
        names: the existing fields.
        texts: the existing fields that contain text.
        is_row: whether the origin is a row. `skip_bad_lines` can leave it out.
    """
    source = f"`corpus_spec`={spec.name}" if spec.name else "`text_fields`"
    expected = f"the fields {','.join(spec.text_fields)} ({source})"
    return InputError(origin, expected, shown_names(names), _hint(texts, is_row))


def not_text_error(
    origin: object, name: str, kind: str, texts: Sequence[str], *, is_row: bool = False
) -> InputError:
    """Returns the error for a field whose values are not text.

    Args:
        origin: see `missing_fields_error`.
        name: the field.
        kind: type of the values. That of lists is, for example, "list" or "large_list<…>".
        texts: see `missing_fields_error`.
        is_row: see `missing_fields_error`.
    """
    is_list = "list" in kind.partition("<")[0]
    default_hint = _LISTS if is_list else _NO_SUGGESTION
    hint = _hint(texts, is_row, default_hint)
    return InputError(origin, f"text in the field {name}", kind, hint)


def text_names(row: Mapping[str, object]) -> list[str]:
    """Returns the fields of a row that contain text, the longest text first."""
    texts = {name: value for name, value in row.items() if isinstance(value, str) and value}
    return sorted(texts, key=lambda name: -len(texts[name]))


def long_text_names(row: Mapping[str, object]) -> list[str]:
    """Returns those of `text_names` whose text is long enough to be a document."""
    return [name for name in text_names(row) if len(row[name]) >= _MIN_DOCUMENT_CHARS]


def likely_text(texts: Sequence[str]) -> str | None:
    """Returns the field that most likely contains the document's text; None without candidates.

    Args:
        texts: the candidates. Without a common name, the first one is returned.
    """
    common = [name for name in _COMMON_NAMES if name in texts]
    return next(iter((*common, *texts)), None)


def _hint(texts: Sequence[str], is_row: bool, default: str = _NO_SUGGESTION) -> str:
    """Returns a hint that names the field that most likely contains the text."""
    likely = likely_text(texts)
    hint = default if likely is None else f"set `text_fields`={shown_names([likely])}"
    return f"{hint}, or set `skip_bad_lines` to leave the row out" if is_row else hint
