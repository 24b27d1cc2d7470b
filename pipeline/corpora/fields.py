"""The fields of rows that are a document's text: errors that name the right ones."""

from collections.abc import Mapping, Sequence

from data_specs.corpora import CorpusSpec
from pipeline.base.errors import InputError

# Names of the text in public corpora, the likeliest first.
_USUAL = ("text", "content", "body", "article", "document", "passage", "sentence")
_NO_SUGGESTION = "set `text_fields` to those that are text"
_LISTS = "lists are not read: join their texts to one field first"
# A shorter text is hardly the document of a row whose field is there and no text.
_LONG_CHARS = 20


def shown_names(names: Sequence[str]) -> str:
    """Returns the first of some names, in one line."""
    return ",".join(" ".join(str(name).split())[:40] for name in names[:8]) or "none"


def missing_fields(
    spec: CorpusSpec,
    origin: object,
    names: Sequence[str],
    texts: Sequence[str],
    *,
    is_row: bool = False,
) -> InputError:
    """Returns the error of a row or a table that lacks text fields.

    Args:
        spec: says which are asked for.
        origin: the file or the place in it.
        names: the fields that are there.
        texts: those of them that hold text.
        is_row: whether the origin is a row, which can be left out.
    """
    source = f"`corpus_spec`={spec.name}" if spec.name else "`text_fields`"
    expected = f"the fields {','.join(spec.text_fields)} ({source})"
    return InputError(origin, expected, shown_names(names), _hint(texts, is_row))


def no_text(
    origin: object, name: str, kind: str, texts: Sequence[str], *, is_row: bool = False
) -> InputError:
    """Returns the error of a field whose values are no text; see `missing_fields`.

    Args:
        kind: the type of the values, "list" or "large_list<…>" where these are lists.
    """
    is_list = "list" in kind.partition("<")[0]
    otherwise = _LISTS if is_list else _NO_SUGGESTION
    return InputError(origin, f"text in the field {name}", kind, _hint(texts, is_row, otherwise))


def text_names(row: Mapping[str, object]) -> list[str]:
    """Returns the fields of a row that hold text, the longest text first."""
    texts = {name: value for name, value in row.items() if isinstance(value, str) and value}
    return sorted(texts, key=lambda name: -len(texts[name]))


def long_text_names(row: Mapping[str, object]) -> list[str]:
    """Returns those of `text_names` that may well be a document."""
    return [name for name in text_names(row) if len(row[name]) >= _LONG_CHARS]


def likely_text(texts: Sequence[str]) -> str | None:
    """Returns which of the fields that hold text is a document's, by all appearances."""
    usual = [name for name in _USUAL if name in texts]
    return next(iter((*usual, *texts)), None)


def _hint(texts: Sequence[str], is_row: bool, otherwise: str = _NO_SUGGESTION) -> str:
    """Returns a hint that names the field which is the text, by all appearances."""
    likely = likely_text(texts)
    hint = otherwise if likely is None else f"set `text_fields`={shown_names([likely])}"
    return f"{hint}, or set `skip_bad_lines` to leave the row out" if is_row else hint
