"""Schemas of the records. Names of features are string literals only in this module.

A record is a `tf.train.Example`. Each feature is a single bytes value: an unpadded, little-endian
array. Arrays over masked positions have only real positions. The letters of shapes are:

    S: segments
    L: tokens
    W: word starts
    P: masked positions
    K: top-k
    T: cached temperatures
    G: groups of teacher layers
    D: hidden size of the teacher
    E: width of the teacher's output table
    N: blocks of a head state
    Y: bytes of a head state
    Z: compressed bytes
    C: outputs of a task's head. A head for spans has two for each token; all starts come first.
"""

import dataclasses

import numpy as np

# Pooling of the last hidden states to an embedding: the first state, or the mean over tokens.
POOLINGS = ("cls", "mean")
# Stands for `id_dtype(vocab_size)` in a feature's declaration.
ID_DTYPE = "id"

EXAMPLE_ID = "example_id"
INPUT_IDS = "input_ids"
SEGMENT_LENGTHS = "segment_lengths"
WORD_STARTS = "word_starts"
MASKED_LM_POSITIONS = "masked_lm_positions"
MASKED_LM_IDS = "masked_lm_ids"
TOPK_IDS = "topk_ids"
TOPK_LOGITS = "topk_logits"
LOG_TAIL_MASSES = "log_tail_masses"
LABEL_LOG_PROBS = "label_log_probs"
TOPK_RANGES = "topk_ranges"
TOPK_COUNTS = "topk_counts"
HIDDEN_STATES = "hidden_states"
HIDDEN_SCALES = "hidden_scales"
EMBEDDING = "embedding"
HEAD_STATES = "head_states"
HEAD_SCALES = "head_scales"
TEACHER_LOGITS = "teacher_logits"

# Names of BERT's inputs that only a batch has.
INPUT_MASK = "input_mask"
SEGMENT_IDS = "segment_ids"
MASKED_LM_WEIGHTS = "masked_lm_weights"


def id_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype of token ids in a record: uint16, or int32 above 65,536 tokens."""
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<i4")


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of a record.

    Attributes:
        name: key in the `tf.train.Example`.
        dtype: NumPy dtype string (little-endian), or `ID_DTYPE`.
        shape: dimensions of the array, one letter each, in row-major order.
        meaning: one sentence that describes the feature.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    meaning: str

    def numpy_dtype(self, vocab_size: int) -> np.dtype:
        """Returns the NumPy dtype for a vocabulary size."""
        return id_dtype(vocab_size) if self.dtype == ID_DTYPE else np.dtype(self.dtype)


_EXAMPLE_ID = Feature(EXAMPLE_ID, "|u1", ("16",), "A function of seed, document, window and copy.")
_SEGMENT_LENGTHS = Feature(
    SEGMENT_LENGTHS, "<u2", ("S",), "Tokens of each segment, [CLS] and [SEP] included."
)

MASKED_EXAMPLE_FEATURES: tuple[Feature, ...] = (
    _EXAMPLE_ID,
    Feature(INPUT_IDS, ID_DTYPE, ("L",), "Token ids after masking, with [CLS] and [SEP]."),
    _SEGMENT_LENGTHS,
    Feature(MASKED_LM_POSITIONS, "<u2", ("P",), "Masked positions in input_ids, ascending."),
    Feature(MASKED_LM_IDS, ID_DTYPE, ("P",), "The true token at each masked position."),
)

# The features of the top-k, keyed by its encoding. Bytes Z are compressed with zlib (RFC 1950).
TOPK_FEATURES: dict[str, tuple[Feature, ...]] = {
    "float16": (
        Feature(
            TOPK_IDS,
            ID_DTYPE,
            ("P", "K"),
            "The teacher's most probable tokens, by descending probability.",
        ),
        Feature(
            TOPK_LOGITS,
            "<f2",
            ("P", "K"),
            "Logits of the ids in topk_ids, relative to the largest logit at the position.",
        ),
    ),
    "compact": (
        Feature(
            TOPK_IDS,
            "|u1",
            ("Z",),
            "Differences between consecutive frequency ranks of the top-k tokens, compressed.",
        ),
        Feature(
            TOPK_LOGITS,
            "|u1",
            ("Z",),
            "Quantized logits of the top-k in the order of topk_ids, compressed. topk_ranges holds "
            "the scale of each position.",
        ),
        Feature(TOPK_RANGES, "<f2", ("P",), "The largest logit minus the smallest."),
    ),
}
# A record has this feature if some positions have fewer than K ids. The arrays then contain
# exactly these ids.
TOPK_COUNTS_FEATURE = Feature(TOPK_COUNTS, "<u2", ("P",), "Number of ids at each position.")

# A feature of every teacher cache.
LABEL_FEATURE = Feature(
    LABEL_LOG_PROBS, "<f2", ("P",), "The teacher's log-probability of the label, T=1."
)
# Features of a teacher cache that accompany the top-k.
MASS_FEATURES: tuple[Feature, ...] = (
    Feature(
        LOG_TAIL_MASSES,
        "<f4",
        ("P", "T"),
        "Log of the mass outside the top-k, for each temperature.",
    ),
    LABEL_FEATURE,
)
# Features that replace the top-k and its tails: the input of the teacher's output table, keyed by
# the bits of a number. It is rotated, see `pipeline.storage.codecs.states`.
_HEAD_SCALES = Feature(HEAD_SCALES, "<f2", ("P", "N"), "The largest magnitude in each block.")
HEAD_STATE_FEATURES: dict[int, tuple[Feature, ...]] = {
    16: (Feature(HEAD_STATES, "<f2", ("P", "E"), "The rotated input of the output table."),),
    8: (
        Feature(
            HEAD_STATES,
            "|i1",
            ("P", "E"),
            "Rotated input of the output table, quantized to int8 with one scale per block.",
        ),
        _HEAD_SCALES,
    ),
    4: (
        Feature(
            HEAD_STATES,
            "|u1",
            ("P", "Y"),
            "Rotated input of the output table, quantized to 4 bits, two values per byte.",
        ),
        _HEAD_SCALES,
    ),
}
# The features of a teacher cache with the encoding float16.
TEACHER_CACHE_FEATURES = MASKED_EXAMPLE_FEATURES + TOPK_FEATURES["float16"] + MASS_FEATURES

# Optional features of a teacher cache, keyed by the encoding of hidden states.
HIDDEN_FEATURES: dict[str, tuple[Feature, ...]] = {
    "float16": (
        Feature(HIDDEN_STATES, "<f2", ("P", "G", "D"), "Mean hidden state of each layer group."),
    ),
    "int8": (
        Feature(
            HIDDEN_STATES,
            "|i1",
            ("P", "G", "D"),
            "Mean hidden state of each layer group, quantized to int8.",
        ),
        Feature(HIDDEN_SCALES, "<f4", ("P", "G"), "Quantization scale of each hidden state."),
    ),
}

# Optional feature of a teacher cache, once for each example.
EMBEDDING_FEATURE = Feature(EMBEDDING, "<f2", ("D",), "Pooled last hidden state, without masks.")

UNMASKED_WINDOW_FEATURES: tuple[Feature, ...] = (
    _EXAMPLE_ID,
    Feature(INPUT_IDS, ID_DTYPE, ("L",), "The true token ids, with [CLS] and [SEP]."),
    _SEGMENT_LENGTHS,
    Feature(WORD_STARTS, "<u2", ("W",), "Positions in input_ids where words begin, ascending."),
)

TASK_LOGITS_FEATURES: tuple[Feature, ...] = (
    Feature(EXAMPLE_ID, "|u1", ("16",), "Digest of the input's tokens and segments."),
    Feature(TEACHER_LOGITS, "<f4", ("C",), "The fine-tuned teacher's logits of the input."),
)

MASKED_EXAMPLES = "masked_examples"
UNMASKED_WINDOWS = "unmasked_windows"
TEACHER_CACHE = "teacher_cache"
TASK_LOGITS = "task_logits"

# The features in a shard directory, keyed by the manifest's `kind`.
FEATURES: dict[str, tuple[Feature, ...]] = {
    MASKED_EXAMPLES: MASKED_EXAMPLE_FEATURES,
    UNMASKED_WINDOWS: UNMASKED_WINDOW_FEATURES,
    TEACHER_CACHE: TEACHER_CACHE_FEATURES,
    TASK_LOGITS: TASK_LOGITS_FEATURES,
}
