"""Writes the same documents as files of every format and compression."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pathlib
import tarfile
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lambda content: lzma.compress(content, preset=1),
    ".zst": zstandard.ZstdCompressor().compress,
}


def text(documents: Sequence[str]) -> bytes:
    """Returns text with blank lines between documents."""
    return "".join(document + "\n\n" for document in documents).encode()


def _rows(documents: Sequence[str]) -> list[dict[str, object]]:
    return [{"n": n, "text": document} for n, document in enumerate(documents)]


def json_lines(documents: Sequence[str]) -> bytes:
    """Returns JSON lines with one document per line."""
    return "".join(json.dumps(row) + "\n" for row in _rows(documents)).encode()


def json_array(documents: Sequence[str]) -> bytes:
    """Returns one JSON array."""
    return json.dumps(_rows(documents), ensure_ascii=False).encode()


def delimited(documents: Sequence[str], delimiter: str = ",") -> bytes:
    """Returns delimited rows. Fields are quoted where necessary."""
    content = io.StringIO()
    writer = csv.writer(content, delimiter=delimiter)
    writer.writerow(["n", "text"])
    writer.writerows(enumerate(documents))
    return content.getvalue().encode()


def table(documents: Sequence[str]) -> pa.Table:
    """Returns an Arrow table."""
    return pa.Table.from_pylist(_rows(documents))


def parquet(documents: Sequence[str], **settings: object) -> bytes:
    """Returns a Parquet file with two row groups."""
    content = io.BytesIO()
    rows = max(1, -(-len(documents) // 2))
    pq.write_table(table(documents), content, row_group_size=rows, **settings)
    return content.getvalue()


def arrow_stream(documents: Sequence[str]) -> bytes:
    """Returns an Arrow stream of record batches, as `datasets` writes it."""
    content, rows = io.BytesIO(), table(documents)
    with pa.ipc.new_stream(content, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1000)
    return content.getvalue()


def arrow_file(documents: Sequence[str]) -> bytes:
    """Returns an Arrow file of record batches, also known as Feather."""
    content, rows = io.BytesIO(), table(documents)
    with pa.ipc.new_file(content, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1000)
    return content.getvalue()


FORMATS: Mapping[str, Callable[[Sequence[str]], bytes]] = {
    "txt": text,
    "jsonl": json_lines,
    "json": json_array,
    "csv": delimited,
    "tsv": lambda documents: delimited(documents, "\t"),
    "parquet": parquet,
    "arrow": arrow_stream,
    "feather": arrow_file,
}


def tar(members: Mapping[str, bytes]) -> bytes:
    """Returns a tar archive of files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, member in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member))
    return content.getvalue()


def save_to_disk(folder: pathlib.Path, documents: Sequence[str]) -> None:
    """Writes a folder with the layout of `datasets.Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    half = len(documents) // 2
    names = [f"data-{n:05d}-of-00002.arrow" for n in range(2)]
    for name, shard in zip(names, (documents[:half], documents[half:]), strict=True):
        (folder / name).write_bytes(arrow_stream(shard))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": "string"}}))
