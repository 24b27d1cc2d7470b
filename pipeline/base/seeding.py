"""Random streams keyed by what they are for, never by the order of use.

Every stream is a function of (seed, purpose, key …), so that the same document
gets the same masks whichever process handles it, and whenever.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

KeyPart = bytes | str | int


def _encode(part: KeyPart) -> bytes:
    if isinstance(part, bytes):
        return b"b" + part
    if isinstance(part, str):
        return b"s" + part.encode("utf-8")
    return b"i%d" % part


def digest(*parts: KeyPart) -> bytes:
    """Returns 16 bytes that depend on every part and on where each one ends.

    Example:
        `digest("ab", "c") != digest("a", "bc")`
    """
    return hashlib.blake2b(_message(parts), digest_size=16).digest()


def digester(*parts: KeyPart) -> Callable[..., bytes]:
    """Returns a function whose `digest` is of these parts and of its arguments.

    For many digests that begin alike, in half the time.
    """
    beginning = hashlib.blake2b(_message(parts), digest_size=16)

    def finish(*more: KeyPart) -> bytes:
        whole = beginning.copy()
        whole.update(_message(more))
        return whole.digest()

    return finish


def _message(parts: Iterable[KeyPart]) -> bytes:
    encoded = map(_encode, parts)
    return b"".join([len(part).to_bytes(8, "little") + part for part in encoded])


def stream(seed: int, purpose: str, *key: KeyPart) -> np.random.Generator:
    """Returns the random stream of (seed, purpose, key).

    Args:
        seed: the user's seed.
        purpose: what the numbers decide, for example `"mask"`: two purposes never share numbers.
        *key: what they decide it for, for example the document and the copy.

    Returns:
        a generator over Philox, a counter-based generator whose 128-bit key is
        the digest of the arguments (Salmon et al., 2011).
    """
    key_bits = int.from_bytes(digest(seed, purpose, *key), "little")
    return np.random.Generator(np.random.Philox(key=key_bits))


def streams(
    seed: int, purpose: str, keys: Iterable[tuple[KeyPart, ...]]
) -> Iterator[np.random.Generator]:
    """Yields the random stream of (seed, purpose, key) for each of many keys.

    They are those of a `Restarted`. Arguments are those of `stream`.
    """
    restarted, name = Restarted(), digester(seed, purpose)
    for key in keys:
        yield restarted.stream(name(*key))


class Restarted:
    """One generator that begins anew: a stream ends where the next one is asked for.

    That takes a third of the time of as many calls of `stream`.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._random, self._state = np.random.Generator(self._bits), self._bits.state

    def stream(self, key_digest: bytes) -> np.random.Generator:
        """Returns the stream that `stream` has for what the digest is of."""
        self._state["state"]["key"] = np.frombuffer(key_digest, "<u8")
        self._bits.state = self._state
        return self._random


def hash64(seed: int, purpose: str, *key: KeyPart) -> int:
    """Returns 64 uniform bits for (seed, purpose, key), as an unsigned integer."""
    return int.from_bytes(digest(seed, purpose, *key)[:8], "big")
