"""The log of a resumed run keeps valid earlier lines and drops broken ones."""

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
def test_broken_and_later_lines_are_removed(tmp_path: pathlib.Path, broken: bytes) -> None:
    path = tmp_path / METRICS_FILE
    # A line separator of Unicode does not end a line of the file.
    other = '{"step": 20, "note": "a\u2028b"}'.encode()
    path.write_bytes(_LINE + b"\n" + broken + b"\n" + other + b"\n")
    log = RunLog(tmp_path, start=20)
    log.write(21, "train", {"loss": 0.5})
    log.close()
    *earlier, last = path.read_bytes().splitlines()
    assert earlier == [_LINE, other]
    assert json.loads(last) == {"step": 21, "split": "train", "loss": 0.5}


def test_local_log_is_removed_after_a_failed_upload(bucket, monkeypatch) -> None:
    def put_file(*arguments: object, **options: object) -> None:
        raise OSError("503 SlowDown")

    log = RunLog(bucket, start=0)
    log.write(1, "train", {"loss": 0.5})
    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with pytest.raises(OSError, match="503 SlowDown"):
        log.close()
    assert not list(mirror_folder().rglob(METRICS_FILE))
