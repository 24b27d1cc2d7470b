"""The fields of rows that are a document's text: errors that name the right ones."""

from collections.abc import Sequence

from data_specs.corpora import CorpusSpec
from pipeline.base.errors import InputError

# Names of the text in public corpora, the likeliest first.
_USUAL = ("text", "content", "body", "article", "document", "passage", "sentence")


def shown_names(names: Sequence[str]) -> str:
    """Returns the first of some names, in one line."""
    return ",".join(" ".join(str(name).split())[:40] for name in names[:8]) or "none"


def missing_fields(
    spec: CorpusSpec, origin: object, names: Sequence[str], texts: Sequence[str]
) -> InputError:
    """Returns the error of a row or a table that lacks text fields.

    Args:
        spec: says which are asked for.
        origin: the file or the place in it.
        names: the fields that are there.
        texts: those of them that hold text.
    """
    source = f"`corpus_spec`={spec.name}" if spec.name else "`text_fields`"
    expected = f"the fields {','.join(spec.text_fields)} ({source})"
    return InputError(origin, expected, shown_names(names), suggestion(texts))


def no_text(origin: object, name: str, kind: str, texts: Sequence[str]) -> InputError:
    """Returns the error of a field whose values are no text."""
    return InputError(origin, f"text in the field {name}", kind, suggestion(texts))


def suggestion(texts: Sequence[str]) -> str | None:
    """Returns a hint that names the field which is the text, by all appearances."""
    usual = [name for name in _USUAL if name in texts]
    likely = usual or list(texts)
    return f"try `text_fields`={shown_names(likely[:1])}" if likely else None
