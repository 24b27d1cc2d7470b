"""Converts the text columns of Arrow tables to documents.

The columns are read as bytes. A value that is not UTF-8 then makes only its own row invalid.
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.base.errors import InputError
from pipeline.corpora import fields
from pipeline.corpora.documents import CorpusFile, Cursor, RawDocument

if TYPE_CHECKING:
    # Functions import this package, so that processes that read other formats start sooner.
    import pyarrow as pa

_TEXT_TYPES = ("string", "large_string", "string_view")
# Some writers store text as bytes.
_BYTES_TYPES = ("binary", "large_binary", "binary_view")


@functools.cache
def errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that pyarrow raises for damaged files."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError)


def _is_one_of(kind: "pa.DataType", names: tuple[str, ...]) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def expect_text(file: CorpusFile, schema: "pa.Schema") -> None:
    """Checks that a table has the text fields of the file's corpus.

    Raises:
        InputError: a text field is missing, occurs twice or is not text.
    """
    spec = file.corpus.spec
    texts = [field.name for field in schema if _is_one_of(field.type, _TEXT_TYPES)]
    if any(schema.names.count(name) != 1 for name in spec.text_fields):
        raise fields.missing_fields_error(spec, file.path, schema.names, texts)
    for name in spec.text_fields:
        kind = schema.field(name).type
        if not _is_one_of(kind, _TEXT_TYPES + _BYTES_TYPES):
            raise fields.not_text_error(file.path, name, str(kind)[:80], texts)


def batch_documents(
    file: CorpusFile, batch: "pa.RecordBatch", cursor: Cursor, position_prefix: str = ""
) -> Iterator[RawDocument]:
    """Yields a document for each row of a batch: its text fields, joined by newlines.

    Args:
        file: the file.
        batch: the rows.
        cursor: the position of the batch. It is advanced past the batch.
        position_prefix: text before the row number in the positions of the documents.
    """
    columns = [_values(batch.column(name)) for name in file.corpus.spec.text_fields]
    for values in zip(*columns, strict=True):
        content = b"\n".join(filter(None, values))
        position = f"{position_prefix}row {cursor.documents}"
        yield RawDocument(file, cursor.documents, position, content)
        cursor.documents += 1


def first_row(schema: "pa.Schema", batches: "Iterator[pa.RecordBatch]") -> dict[str, object]:
    """Returns the values of a table's first row, keyed by field. Without rows, they are None."""
    rows = (batch.slice(0, 1).to_pylist()[0] for batch in batches if batch.num_rows)
    return dict.fromkeys(schema.names) | next(rows, {})


def _values(column: "pa.Array") -> list[bytes | None]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        # A damaged file may have indices beyond the dictionary.
        column.indices.validate(full=True)
        column = column.dictionary_decode()
    if _is_one_of(column.type, ("string",)):
        column = column.view(pa.binary())
    elif _is_one_of(column.type, ("large_string",)):
        column = column.view(pa.large_binary())
    elif _is_one_of(column.type, ("string_view",)):
        column = column.cast(pa.binary_view())
    column.validate(full=True)
    return column.to_pylist()


def damaged_file_error(file: CorpusFile, kind: str, position: str, error: Exception) -> InputError:
    """Returns the error for a file that pyarrow cannot read."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{file.path}{position}", received=f"not a valid {kind} file ({reason})")
