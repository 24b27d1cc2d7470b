"""Tokenization of a text by single characters and by the runs between them.

A Chinese character or a punctuation mark is always one token, whatever is next to it. Between
these and spaces, all other characters form runs, such as a Latin word or a number. The tokens of a
run do not depend on its context. Most runs recur, so each run is tokenized only once.
"""

import array
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.tokenizers.segmenters import is_chinese, is_punctuation
from pipeline.tokenizers.tokens import Tokens

# Values in the table of characters that are not token ids: a space, a character of a run, and a
# character that was not tried yet.
_SPACE, _OF_A_RUN, _UNTRIED = -1, -2, -3
# Characters beyond the table belong to runs.
_TABLE_SIZE = 2**16
# Maximum number of runs that are remembered. If there are more, all are forgotten.
_MAX_RUNS = 2**17


class TextRuns:
    """A tokenizer made from another one that splits at Chinese characters and punctuation.

    Args:
        encode: tokenizes a text.
    """

    def __init__(self, encode: Callable[[str], Tokens]) -> None:
        self._encode = encode
        self._table = _untried_table()
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        # For each run, its first token and its number of tokens.
        self._firsts, self._counts = array.array("q"), array.array("q")
        # For each token, its id, its span within the run, and whether it begins a word.
        self._ids, self._starts, self._ends, self._begins = (array.array("i") for _ in range(4))

    def tokenize(self, text: str) -> Tokens:
        """Returns the tokens of a text."""
        code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        kinds = self._table[np.minimum(code_points, _TABLE_SIZE - 1)]
        if kinds.min(initial=0) == _UNTRIED:
            self._try_characters(np.unique(code_points[kinds == _UNTRIED]))
            kinds = self._table[np.minimum(code_points, _TABLE_SIZE - 1)]
        bounds = np.flatnonzero(np.diff(kinds == _OF_A_RUN, prepend=False, append=False))
        runs = [text[begin:end] for begin, end in bounds.reshape(-1, 2).tolist()]
        numbers = self._look_up(runs)
        run_counts = _view(self._counts)[numbers]
        counts = (kinds >= 0).astype(np.int64)
        counts[bounds[::2]] = run_counts
        starts = np.repeat(np.arange(len(kinds), dtype=np.int32), counts)
        ids, ends, begins = kinds[starts], starts + 1, np.ones(len(starts), np.int32)
        # At this point, `starts` of a run's tokens holds only the start of the run.
        of_run = ids == _OF_A_RUN
        tokens = _ranges(_view(self._firsts)[numbers], run_counts)
        ids[of_run] = _view(self._ids)[tokens]
        ends[of_run] = starts[of_run] + _view(self._ends)[tokens]
        starts[of_run] += _view(self._starts)[tokens]
        begins[of_run] = _view(self._begins)[tokens]
        return Tokens(ids, starts, ends, np.cumsum(begins, dtype=np.int32) - 1)

    def _try_characters(self, candidates: np.ndarray) -> None:
        """Fills the table for some characters: each is tokenized between two letters."""
        tokens = self._encode("a" + "".join(f"{chr(index)}a" for index in candidates.tolist()))
        positions = 2 * np.arange(len(candidates)) + 1
        # Index of the first token at or after each candidate. It always exists, because a letter
        # follows the last candidate.
        first = np.searchsorted(tokens.starts, positions)
        is_token = (tokens.starts[first] == positions) & (tokens.ends[first] == positions + 1)
        is_apart = tokens.word_ids[first] != tokens.word_ids[first - 1]
        following = np.minimum(first + 1, len(tokens.ids) - 1)
        is_lone = is_token & is_apart & (tokens.word_ids[first] != tokens.word_ids[following])
        is_space = (
            is_apart & (tokens.starts[first] > positions) & (tokens.ends[first - 1] <= positions)
        )
        self._table[candidates] = _OF_A_RUN
        self._table[candidates[is_space]] = _SPACE
        self._table[candidates[is_lone]] = tokens.ids[first[is_lone]]

    def _look_up(self, runs: Sequence[str]) -> np.ndarray:
        """Returns the numbers of runs, int [n]; unknown runs are tokenized."""
        numbers = [*map(self._numbers.get, runs)]
        if None in numbers:
            if len(self._numbers) > _MAX_RUNS:
                self._forget()
            self._add([run for run in dict.fromkeys(runs) if run not in self._numbers])
            numbers = [*map(self._numbers.get, runs)]
        return np.array(numbers, np.int64)

    def _add(self, runs: Sequence[str]) -> None:
        """Tokenizes runs as the lines of one text, and remembers their tokens."""
        lengths = np.array([*map(len, runs)]) + 1
        offsets = np.cumsum(lengths) - lengths
        tokens = self._encode("\n".join(runs))
        run = np.searchsorted(offsets, tokens.starts, side="right") - 1
        counts = np.bincount(run, minlength=len(runs))
        begins = np.diff(tokens.word_ids, prepend=-1) != 0
        known = len(self._ids)
        self._numbers |= {run: len(self._numbers) + i for i, run in enumerate(runs)}
        _extend(self._firsts, known + np.cumsum(counts) - counts)
        _extend(self._counts, counts)
        _extend(self._ids, tokens.ids)
        _extend(self._starts, tokens.starts - offsets[run])
        _extend(self._ends, tokens.ends - offsets[run])
        _extend(self._begins, begins)


def _untried_table() -> np.ndarray:
    """Returns an empty table of characters, int32 [65,536].

    It will have the id of each character that is always one token. Only Chinese characters,
    punctuation and spaces are candidates, and these are tried when a text contains them.
    """
    every = np.arange(_TABLE_SIZE, dtype=np.uint32)
    spaces = np.array([chr(index).isspace() for index in range(_TABLE_SIZE)])
    table = np.full(_TABLE_SIZE, _OF_A_RUN, np.int32)
    table[is_chinese(every) | is_punctuation(every) | spaces] = _UNTRIED
    return table


def _ranges(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns concatenated ranges of numbers; range i has `counts[i]` numbers from `firsts[i]`."""
    shifts = firsts - (np.cumsum(counts) - counts)
    return np.repeat(shifts, counts) + np.arange(counts.sum())


def _view(values: array.array) -> np.ndarray:
    return np.frombuffer(values, values.typecode)


def _extend(values: array.array, added: np.ndarray) -> None:
    values.frombytes(added.astype(values.typecode).tobytes())
