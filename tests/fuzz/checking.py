"""What holds of every reader, whatever the bytes: a good value, or an error for people."""

import contextlib
import dataclasses
import pathlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.location import LocalLocation
from tests.fuzz.mutation import Mutate

# Of processor time, on machines that are shared.
TIME_LIMIT = 5.0
# An error is for people to read.
_MAX_MESSAGE = 4_000


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files from outside.

    Attributes:
        name: what the campaign calls it.
        file: the file that is made wrong, in a folder that `prepare` fills.
        mutate: makes it wrong.
        read: reads the folder and uses what it read, as the library would; InputError
            where it refuses.
        prepare: fills the folder with what is right.
        others: what a refusal may name instead of the file: others, or flags.
    """

    name: str
    file: str
    mutate: Mutate
    read: Callable[[pathlib.Path], object]
    prepare: Callable[[pathlib.Path], None]
    others: tuple[str, ...] = ()


class Hang(BaseException):
    """A reader took longer than it may."""


class Finding(AssertionError):
    """A reader did what it must not.

    Attributes:
        place: tells findings apart.
    """

    def __init__(self, text: str, place: str) -> None:
        super().__init__(text)
        self.place = place


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `Hang` in the block after so much processor time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, previous)


def _place(error: BaseException) -> str:
    """Returns the type of an error and the last line of ours that it went through."""
    found, trace = "?", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/tests/" not in name and ("/pipeline/" in name or "/tools/" in name or "specs" in name):
            found = f"{pathlib.Path(name).name}:{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__} in {found}"


def check(reader: Reader, folder: pathlib.Path, content: bytes) -> bool:
    """Reads wrong bytes.

    Args:
        reader: what reads.
        folder: prepared; the reader's file in it is overwritten.
        content: of that file.

    Returns:
        whether a value came out; else they were refused as they must be.

    Raises:
        Finding: another error, one of several lines or without the file's name, or
            no end.
    """
    (folder / reader.file).write_bytes(content)
    try:
        with time_limit(TIME_LIMIT):
            reader.read(folder)
    except InputError as error:
        message = str(error)
        place = _place(error)
        if len(message.splitlines()) != 1:
            raise Finding(f"not one line: {message!r}", f"lines, {place}") from error
        if len(message) > _MAX_MESSAGE:
            raise Finding(f"{len(message)} letters: {message[:200]}", f"long, {place}") from error
        names = (pathlib.Path(reader.file).name, *reader.others)
        # An error names a setting without the dashes of its flag.
        if not any(name.removeprefix("--") in message for name in names):
            raise Finding(f"names no file: {message}", f"nameless, {place}") from error
        return False
    except Hang as error:
        raise Finding(f"no end after {TIME_LIMIT} s", _place(error)) from error
    except (KeyboardInterrupt, SystemExit):
        raise
    # Also what Rust's panics become, which are no Exception.
    except BaseException as error:
        text = " ".join(repr(error).split())[:300]
        raise Finding(f"another error: {text}", _place(error)) from error
    return True


def fuzz_target(reader: Reader, folder: pathlib.Path) -> Any:
    """Returns a test of a reader on wrong files, after checking that it accepts the right one.

    Its `hypothesis.fuzz_one_input` takes the bytes of a fuzzer.

    Args:
        reader: the reader.
        folder: empty.
    """
    folder = LocalLocation(folder)
    reader.prepare(folder)
    right = (folder / reader.file).read_bytes()
    if not check(reader, folder, right):
        raise Finding("refuses the right file", "the right file")

    @settings(max_examples=15)
    @given(st.data())
    def read_wrong(data: st.DataObject) -> None:
        def below(limit: int) -> int:
            return data.draw(st.integers(0, limit - 1))

        check(reader, folder, reader.mutate(below, right))

    return read_wrong
