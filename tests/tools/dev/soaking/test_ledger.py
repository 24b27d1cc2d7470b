"""The table of faults: what counts as harm, and what is shown of it."""

import pytest

from tools.dev.soaking.ledger import Ledger, Row
from tools.dev.soaking.running import Outcome

KILLED = Outcome(-9, "masking: 40%", 3.0, 100 * 2**20, False, 0)


def test_a_fault_that_lost_nothing_is_clean() -> None:
    ledger = Ledger()
    row = ledger.row("SIGKILL", "1a")
    row.injected += 1
    ledger.note(row, KILLED, work="/somewhere")
    assert ledger.is_clean()
    assert ledger.row("SIGKILL", "1a") is row


def test_each_harm_is_one() -> None:
    for name in ("lost", "wrong", "unrecovered", "tracebacks", "processes_left", "files_left"):
        assert Row(**{name: 2}).num_harms() == 2, name
    assert Row(injected=3, met=2).num_harms() == 0


@pytest.mark.parametrize(
    ("megabytes", "grew"),
    [
        # Of one that found all finished nothing is said, be it the first.
        ([10, 100, 100, 100, 100, 125], False),
        ([100, 100, 100, 100, 100, 126], True),
        ([100, 100, 100, 100, 126], False),
        ([126, 100, 300, 300, 100, 100], False),
        ([100, 100, 100, 500, 500, 500, 10, 10, 200], True),
    ],
)
def test_memory_that_grows_is_harm(megabytes: list[int], grew: bool) -> None:
    ledger = Ledger()
    ledger.row("SIGTERM", "1a")
    ledger.peaks["1b"] = [count * 2**20 for count in megabytes]
    assert ledger.is_clean() is not grew
    assert list(ledger.lines())[-1].endswith(", more than 1.25 times as much") is grew


def test_lines_of_different_places_and_numbers_are_one() -> None:
    ledger = Ledger()
    row = ledger.row("disk full", "1b")
    for number in (17, 203):
        said = f"error: /work/a/train-{number:05d}-of-00008.tfrecord: No space left on device"
        ledger.note(row, Outcome(1, said, 1.0, 1, number == 203, 2), work="/work/a")
    assert row.seen == {"status 1: error: …/train-N-of-N.tfrecord: No space left on device": 2}
    assert row.tracebacks == 1
    assert row.processes_left == 4
    assert not ledger.is_clean()


def test_the_table_adds_up() -> None:
    ledger = Ledger()
    for stage, lost in (("1a", 2), ("2", 3)):
        row = ledger.row("SIGTERM", stage)
        row.injected, row.met, row.lost = 5, 4, lost
        ledger.note(row, KILLED, work="/w")
    ledger.peaks["1a"] = [100 * 2**20, 110 * 2**20, 120 * 2**20, 90 * 2**20]
    lines = list(ledger.lines())
    assert lines[0].split() == [
        *("fault,", "stage", "injected", "met", "lost", "wrong"),
        *("unrecovered", "tracebacks", "left", "over"),
    ]
    assert next(line for line in lines if line.startswith("all")).split() == [
        *("all", "10", "8", "5", "0", "0", "0", "0")
    ]
    assert "SIGTERM, 1a, 1 times: signal 9: masking: N%" in lines
    assert lines[-1] == "memory of stage 1a, highest peak: first third 100 MB, last third 90 MB"
    assert ledger.to_json()["faults"][0]["seen"] == {"signal 9: masking: N%": 1}
