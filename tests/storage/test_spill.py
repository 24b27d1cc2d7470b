"""The external sort yields records in the order of keys, for any division into spill files."""

import hashlib
import itertools
import pathlib
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage import spill


class Entry(NamedTuple):
    """A record with its sort key and its group."""

    example_id: bytes
    group: int
    record: bytes


def _entries(count: int) -> list[Entry]:
    return [
        Entry(
            hashlib.blake2b(bytes([number]), digest_size=16).digest(),
            number % 3,
            b"r%d" % number * (number % 5),
        )
        for number in range(count)
    ]


def _write(path: Location, entries: list[Entry], header: dict[str, Any]) -> None:
    example_ids = b"".join(entry.example_id for entry in entries)
    groups, contents = ([entry[i] for entry in entries] for i in (1, 2))
    columns = spill.Entries(example_ids, groups, contents, [0] * len(entries))
    spill.write_spill(path, columns, header)


@given(
    count=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    shards=st.integers(1, 5),
    expected_bytes=st.sampled_from([0, 2**26, 2**28]),
)
def test_shards_hold_the_selected_records_in_order_of_keys(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    cuts: list[int],
    shards: int,
    expected_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    entries = _entries(count)
    bounds = [0, *sorted(cuts), 60]
    paths = []
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        paths.append(folder / f"{number}.spill")
        _write(paths[-1], entries[begin:end], {"number": number})
        assert spill.read_header(paths[-1]) == {"number": number}
    expected = [
        entry.record
        for entry in sorted(entries, key=lambda entry: entry.example_id)
        if 1 <= entry.group < 3
    ]
    received = []
    for shard in range(shards):
        low, high = (spill.KEY_SPACE * n // shards for n in (shard, shard + 1))
        keys = spill.KeyRange(low, high, 1, 3)
        received += spill.read_sorted(paths, keys, expected_bytes=expected_bytes)
    assert received == expected


def test_header_of_a_missing_file_is_none(tmp_path: pathlib.Path) -> None:
    assert spill.read_header(tmp_path / "none.spill") is None


def _damaged(path: pathlib.Path, content: bytes) -> str:
    path.write_bytes(content)
    keys = spill.KeyRange(0, spill.KEY_SPACE, 0, spill.KEY_SPACE)
    with pytest.raises(InputError) as error:
        list(spill.read_sorted([path], keys, expected_bytes=0))
    return str(error.value)


def test_error_about_a_damaged_spill_file_names_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "chunk.spill"
    _write(path, _entries(9), {"fingerprint": "f"})
    valid = path.read_bytes()
    index = valid.index(b"\x93NUMPY")
    first = valid.index(b"\n", index) + 1
    message = f"{path}: a damaged temporary file; delete it and re-run the command"
    for damaged in (
        valid[:-1],
        valid[: first + 20],
        valid[:index],
        # The array claims 9,999 entries.
        valid.replace(b"(9,)", b"(9999,)"),
        valid.replace(b"'<u8'", b"'|O'"),
        valid.replace(b"{'descr'", b"{('descr"),
        # The first record claims to begin at 2^64 − 1.
        valid[: first + 24] + b"\xff" * 8 + valid[first + 32 :],
    ):
        assert _damaged(path, damaged).startswith(message)


@pytest.mark.parametrize("header", [b"{", b"[1]", b"[" * 5000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_damaged_header_of_a_spill_file_is_none(tmp_path: pathlib.Path, header: bytes) -> None:
    path = tmp_path / "chunk.spill"
    _write(path, _entries(3), {"fingerprint": "f"})
    assert spill.read_header(path) == {"fingerprint": "f"}
    path.write_bytes(header + b"\n" + path.read_bytes().partition(b"\n")[2])
    assert spill.read_header(path) is None
