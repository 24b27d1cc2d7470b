"""Keyed random numbers: they do not depend on the order of their use.

Every number is a function of (seed, purpose, key …). A document therefore gets the same masks in
every process and at any time. `keyed_rng` makes one generator. `KeyedStreams` compute the numbers
of many short streams at once.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

KeyPart = bytes | str | int

# Name of the algorithm of `KeyedStreams`, recorded in manifests. An algorithm that gives other
# numbers needs another name.
STREAMS = "philox4x32-10"
# Constants of Philox4x32 from Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3",
# section 4.3: multipliers, and steps of the key.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_NUMBERS_PER_BLOCK = 4
# Bits of a counter word that number the blocks of a stream.
_BLOCK_BITS = 24


def _encode(key_part: KeyPart) -> bytes:
    """Returns the type, the size and the content of a key part."""
    if isinstance(key_part, bytes):
        return (len(key_part) + 1).to_bytes(8, "little") + b"b" + key_part
    return _encode_constant(key_part)


# Purposes, seeds and most indices recur.
@functools.lru_cache(maxsize=4096)
def _encode_constant(key_part: str | int) -> bytes:
    content = b"s" + key_part.encode("utf-8") if isinstance(key_part, str) else b"i%d" % key_part
    return len(content).to_bytes(8, "little") + content


def digest(*key: KeyPart) -> bytes:
    """Returns 16 bytes that depend on every key part and on its length.

    Example:
        `digest("ab", "c") != digest("a", "bc")`
    """
    return hashlib.blake2b(b"".join(map(_encode, key)), digest_size=16).digest()


def keyed_rng(seed: int, purpose: str, *key: KeyPart) -> np.random.Generator:
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


@dataclasses.dataclass(frozen=True)
class KeyedStreams:
    """The streams of random numbers of R rows, for example of the copies of many windows.

    A stream depends only on its own row: on the row's key and its two numbers.

    Attributes:
        keys: uint32 [R, 4], which depend on the seed, the purpose and the row's key.
        numbers: uint32 [R, 2], for example the index of a window and the index of its copy.
    """

    keys: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(
        cls,
        seed: int,
        purpose: str,
        keys: np.ndarray,
        first: np.ndarray | int = 0,
        second: np.ndarray | int = 0,
    ) -> "KeyedStreams":
        """Returns the streams of (seed, purpose, key, first, second).

        Args:
            seed: see `keyed_rng`.
            purpose: see `keyed_rng`.
            keys: uint32 [R, 4], the result of `key_words`.
            first: int [R], or one number for all rows.
            second: int [R], or one number for all rows.
        """
        salted = keys ^ np.frombuffer(digest(seed, purpose), "<u4")
        numbers = np.empty((len(salted), 2), np.uint32)
        numbers[:, 0], numbers[:, 1] = first, second
        return cls(salted, numbers)

    def __len__(self) -> int:
        return len(self.keys)

    def bits(self, counts: np.ndarray | int, stream: int = 0) -> np.ndarray:
        """Returns the first numbers of each row's stream: 32 uniform bits each, uint32 [n].

        Args:
            counts: int [R], how many numbers of each row; or one count for all rows. Their sum
                is n.
            stream: which of the row's streams, from 0 to 255.
        """
        counts = np.broadcast_to(counts, len(self))
        blocks = -(-counts // _NUMBERS_PER_BLOCK)
        first_blocks = np.cumsum(blocks) - blocks
        block = np.arange(blocks.sum()) - np.repeat(first_blocks, blocks) + (stream << _BLOCK_BITS)
        words = (self.keys[:, :2], self.keys[:, 2:] ^ self.numbers)
        key, numbers = ([np.repeat(word, blocks) for word in pair.T] for pair in words)
        counters = (block.astype(np.uint32), *numbers, np.zeros(len(block), np.uint32))
        drawn = philox4x32(counters, key).ravel()
        # The last block of a row may have more numbers than requested.
        surplus = _NUMBERS_PER_BLOCK * first_blocks - (np.cumsum(counts) - counts)
        return drawn[np.arange(counts.sum()) + np.repeat(surplus, counts)]


def key_words(keys: Sequence[bytes]) -> np.ndarray:
    """Returns keys of 16 bytes with uniformly distributed bits as numbers, uint32 [R, 4]."""
    # Keys of other sizes occur only in files of other programs: they are cut, or padded with
    # zeros.
    return np.array(keys, "S16").view("<u4").reshape(-1, 4)


def philox4x32(counters: Sequence[np.ndarray], key: Sequence[np.ndarray]) -> np.ndarray:
    """Computes Philox4x32-10 of Salmon et al., 2011.

    Args:
        counters: the four words of each counter, uint32 [n] each.
        key: the two words of each key, uint32 [n] each.

    Returns:
        the random words of each counter, uint32 [n, 4].
    """
    words, key = list(counters), list(key)
    for _ in range(_ROUNDS):
        products = [
            np.multiply(word, multiplier, dtype=np.uint64).astype("<u8", copy=False).view("<u4")
            for word, multiplier in zip(words[::2], _MULTIPLIERS, strict=True)
        ]
        low, high = ([product[half::2] for product in products] for half in (0, 1))
        words = [high[1] ^ words[1] ^ key[0], low[1], high[0] ^ words[3] ^ key[1], low[0]]
        key = [word + np.uint32(step) for word, step in zip(key, _KEY_STEPS, strict=True)]
    return np.stack(words, axis=1)


def below(limits: np.ndarray | int, bits: np.ndarray) -> np.ndarray:
    """Returns random integers of at least 0 and below the limits, int64 [n], from 32 bits each.

    Lemire, 2019, "Fast random integer generation in an interval", without the rejection: the
    probabilities differ by at most `limit / 2**32` of their value.
    """
    return ((bits.astype(np.uint64) * np.asarray(limits, np.uint64)) >> np.uint64(32)).astype(
        np.int64
    )


def hash64(seed: int, purpose: str, *key: KeyPart) -> int:
    """Returns 64 uniform bits for (seed, purpose, key), as an unsigned integer."""
    return int.from_bytes(digest(seed, purpose, *key)[:8], "big")
