"""The log of a run that goes on: what stands in it from before, whole or broken."""

import json
import pathlib

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.base.local_mirror import mirror_folder
from pipeline.distill.run_log import METRICS_FILE, RunLog

_LINE = b'{"step": 10, "split": "train", "loss": 1.0}'


@pytest.mark.parametrize(
    "broken",
    [
        b'{"step": 11, "spl',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"step": "10"}',
        b'{"step": null}',
        b"[10]",
        b"3",
        b'{"step": ' + b"9" * 5000 + b"}",
        b'{"step": 21}',
    ],
)
def test_lines_that_are_none_are_left_out(tmp_path: pathlib.Path, broken: bytes) -> None:
    path = tmp_path / METRICS_FILE
    # A line break of Unicode is none of the file's.
    other = '{"step": 20, "note": "a\u2028b"}'.encode()
    path.write_bytes(_LINE + b"\n" + broken + b"\n" + other + b"\n")
    log = RunLog(tmp_path, start=20)
    log.write(21, "train", {"loss": 0.5})
    log.close()
    *kept, last = path.read_bytes().splitlines()
    assert kept == [_LINE, other]
    assert json.loads(last) == {"step": 21, "split": "train", "loss": 0.5}


def test_lines_that_cannot_be_uploaded_are_removed_from_this_machine(bucket, monkeypatch) -> None:
    def put_file(*arguments: object, **options: object) -> None:
        raise OSError("503 SlowDown")

    log = RunLog(bucket, start=0)
    log.write(1, "train", {"loss": 0.5})
    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with pytest.raises(OSError, match="503 SlowDown"):
        log.close()
    assert not list(mirror_folder().rglob(METRICS_FILE))
