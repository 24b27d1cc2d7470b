"""Keyed random generators: random numbers that do not depend on the order of their use.

Each generator is a function of (seed, purpose, key …). A document therefore gets the same masks
in every process and at any time.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

KeyPart = bytes | str | int


def _encode(key_part: KeyPart) -> bytes:
    if isinstance(key_part, bytes):
        return b"b" + key_part
    if isinstance(key_part, str):
        return b"s" + key_part.encode("utf-8")
    return b"i%d" % key_part


def digest(*key: KeyPart) -> bytes:
    """Returns 16 bytes that depend on every key part and on its length.

    Example:
        `digest("ab", "c") != digest("a", "bc")`
    """
    encoded = [_encode(key_part) for key_part in key]
    message = b"".join(len(content).to_bytes(8, "little") + content for content in encoded)
    return hashlib.blake2b(message, digest_size=16).digest()


def stream(seed: int, purpose: str, *key: KeyPart) -> np.random.Generator:
    """Returns the random generator of (seed, purpose, key).

    Args:
        seed: the user's seed.
        purpose: the decision that the numbers make, for example `"mask"`. Two purposes never
            share numbers.
        *key: the object of the decision, for example a document and the number of its copy.

    Returns:
        a generator over Philox, a counter-based generator (Salmon et al., 2011). Its 128-bit
        key is the digest of the arguments.
    """
    key_bits = int.from_bytes(digest(seed, purpose, *key), "little")
    return np.random.Generator(np.random.Philox(key=key_bits))


def streams(
    seed: int, purpose: str, keys: Iterable[tuple[KeyPart, ...]]
) -> Iterator[np.random.Generator]:
    """Yields the random generator of (seed, purpose, key) for each of many keys.

    It yields the same object each time, with a new state. Use a generator only until the next
    one is requested. This takes a third of the time of separate calls of `stream`.

    Args:
        seed: see `stream`.
        purpose: see `stream`.
        keys: the keys, as tuples of key parts.
    """
    bit_generator = np.random.Philox(key=0)
    rng, state = np.random.Generator(bit_generator), bit_generator.state
    for key in keys:
        state["state"]["key"] = np.frombuffer(digest(seed, purpose, *key), "<u8")
        bit_generator.state = state
        yield rng


def hash64(seed: int, purpose: str, *key: KeyPart) -> int:
    """Returns 64 uniform bits for (seed, purpose, key), as an unsigned integer."""
    return int.from_bytes(digest(seed, purpose, *key)[:8], "big")
