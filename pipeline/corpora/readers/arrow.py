"""Reader of Arrow files and streams, and of directories that the package `datasets` saved.

`datasets` saves a dataset as a folder with `data-*.arrow` and the descriptions
`dataset_info.json` and `state.json`. Several splits are saved as one such folder each, together
with `dataset_dict.json`.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from pipeline.base import streams
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.corpora import columns
from pipeline.corpora.documents import CorpusFile, Cursor, RawDocument
from pipeline.corpora.readers.base import Reader

if TYPE_CHECKING:
    import pyarrow as pa

_FILE_MAGIC, _STREAM_MAGIC = b"ARROW1\0\0", b"\xff\xff\xff\xff"
# The end marker of a stream, which also ends the batches of a file.
_END = b"\xff\xff\xff\xff\0\0\0\0"
_DICT, _STATE = "dataset_dict.json", "state.json"
_DESCRIPTIONS = (_DICT, _STATE, "dataset_info.json")
_TRAIN = "train"


class ArrowReader(Reader):
    """Apache Arrow's IPC format, also known as Feather."""

    suffixes = (".arrow", ".feather")
    is_text = False

    def recognizes(self, start: bytes) -> bool:
        """See `Reader`."""
        return start.startswith((_FILE_MAGIC, _STREAM_MAGIC))

    def select(self, files: Sequence[CorpusFile]) -> Sequence[CorpusFile]:
        """See `Reader`: keeps the data files of `train`, or of all splits without a `train`."""
        tables = {_folder(file) for file in files if file.name.endswith(self.suffixes)}
        # The folders of the splits, and their parent folders, which may have several splits.
        folders = tables | {os.path.dirname(folder) for folder in tables}
        described = {
            file.path: os.path.basename(file.name)
            for file in files
            if os.path.basename(file.name) in _DESCRIPTIONS and _folder(file) in folders
        }
        if not described:
            return files
        files = [file for file in files if file.path not in described]
        for description, select in ((_STATE, _select_data_files), (_DICT, _select_split)):
            for path in (path for path, name in described.items() if name == description):
                files = select(path, files)
        return files

    def first_row(self, file: CorpusFile, stream: BinaryIO) -> Mapping[str, object]:
        """See `Reader`."""
        import pyarrow as pa

        try:
            with pa.ipc.open_stream(_as_stream(stream)) as reader:
                return columns.first_row(reader.schema, iter(reader))
        except columns.errors() as error:
            raise columns.damaged_file_error(file, "Arrow", "", error) from error

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`."""
        try:
            for batch in _batches(file, stream):
                yield from columns.batch_documents(file, batch, cursor)
        except columns.errors() as error:
            position = f", row {cursor.documents}" if cursor.documents else ""
            raise columns.damaged_file_error(file, "Arrow", position, error) from error


def _folder(file: CorpusFile) -> str:
    return os.path.dirname(str(file.path))


def _select_split(description: Location, files: list[CorpusFile]) -> list[CorpusFile]:
    """Drops the files of the other splits if there is a split `train`."""
    folder, splits = os.path.dirname(str(description)), description.read_json().get("splits")
    if not isinstance(splits, list) or _TRAIN not in splits:
        return files
    other_folders = {os.path.join(folder, str(split)) for split in splits if split != _TRAIN}
    return [file for file in files if _folder(file) not in other_folders]


def _select_data_files(description: Location, files: list[CorpusFile]) -> list[CorpusFile]:
    """Drops tables that are not data files of the dataset, for example cached results.

    Raises:
        InputError: a data file is missing, or the dataset is a selection of rows.
    """
    folder, state = os.path.dirname(str(description)), description.read_json()
    entries = state.get("_data_files")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return files
    if state.get("_indices_data_files") or state.get("_indices_files"):
        hint = "save the dataset again after flatten_indices()"
        received = "a dataset saved after select(), filter() or shuffle()"
        raise InputError(description, "a dataset without an indices mapping", received, hint)
    names = {os.path.join(folder, str(entry.get("filename"))) for entry in entries}
    missing = sorted(names - {str(file.path) for file in files})
    if missing:
        received = f"no {os.path.basename(missing[0])[:100]}"
        raise InputError(description, "the data files that it names", received)
    return [file for file in files if _folder(file) != folder or str(file.path) in names]


class _TailRecorder(io.RawIOBase):
    """A stream that records its last bytes, as Arrow does not report a missing end marker."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream, self.tail = stream, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self.tail = (self.tail + content[-len(_END) :])[-len(_END) :]
        return content


def _as_stream(stream: BinaryIO) -> BinaryIO:
    start, stream = streams.peek(stream, len(_FILE_MAGIC))
    if start.startswith(_FILE_MAGIC):
        # After its magic, a file is a stream that is followed by a footer.
        stream.read(len(_FILE_MAGIC))
    return stream


def _batches(file: CorpusFile, stream: BinaryIO) -> "Iterator[pa.RecordBatch]":
    """Yields the batches of a table.

    Raises:
        InputError: a text field is missing.
        pa.ArrowInvalid: the table is truncated.
    """
    import pyarrow as pa

    recorder = _TailRecorder(_as_stream(stream))
    with pa.ipc.open_stream(recorder) as reader:
        columns.expect_text(file, reader.schema)
        yield from reader
    if recorder.tail != _END:
        raise pa.ArrowInvalid("it ends before the end of the table")
