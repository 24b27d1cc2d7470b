"""The settings of `create_pretraining_data`."""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline.base import hub_id, seeding
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.runners.ray import RayConfig

if TYPE_CHECKING:
    from pipeline.corpora.documents import Corpus
    from pipeline.tokenizers.tokens import Tokenizer

STATIC = "static"
DYNAMIC = "dynamic"
# Masked copies of a window that are stored unless `dupe_factor` is given.
DEFAULT_DUPE_FACTOR = 5


@dataclasses.dataclass(frozen=True)
class MaskedExamplesConfig(Settings):
    """The settings of `create_pretraining_data`; its flags are generated from them.

    `corpora` are the corpora that the command's flags `input_dir`, `corpus_spec`, `tfds_name`
    and `corpora` select. `ray` is None if the jobs run in processes on this machine.
    """

    corpora: tuple[CorpusSource, ...]
    output_dir: Location = setting(
        dataclasses.MISSING,
        "Directory for the masked examples: an empty one, or that of an interrupted run.",
        decides_output=False,
    )
    vocab_file: Location = setting(
        dataclasses.MISSING,
        "The teacher's vocab.txt, tokenizer.json or SentencePiece model, its directory, or a "
        "model of the hub (ORG/NAME).",
        decides_output=False,
        hub_files=hub_id.TOKENIZER,
    )
    do_lower_case: bool | None = setting(
        None,
        "Whether to lower-case text; WordPiece also strips accents. By default, the value in the "
        "tokenizer_config.json next to the vocabulary. Without that file: yes for a vocab.txt "
        "without capital letters in its tokens, otherwise no.",
    )
    do_whole_word_mask: bool = setting(True, "Whether to mask whole words.")
    segments: str = setting(
        "pair",
        "Layout of an input: pair is [CLS] A [SEP] B [SEP], single is [CLS] A [SEP].",
        choices=("pair", "single"),
    )
    max_seq_length: int = setting(
        512, "Maximum length of an input in tokens, with special tokens.", low=1, high=65535
    )
    max_predictions_per_seq: int = setting(
        20, "Maximum number of masked tokens of an input.", low=1
    )
    masked_lm_prob: float = setting(0.15, "Fraction of tokens to mask.", low=0.0, high=1.0)
    short_seq_prob: float = setting(
        0.1, "Probability that a document gets windows of a shorter length.", low=0.0, high=1.0
    )
    doc_stride: int = setting(
        256,
        "Distance in tokens between the starts of consecutive windows. A larger value than the "
        "window length has the effect of the window length.",
        low=1,
    )
    masking: str = setting(
        STATIC,
        "static stores masked examples, which a teacher cache requires; dynamic stores unmasked "
        "windows, which run_distill masks differently in each epoch.",
        choices=(STATIC, DYNAMIC),
        omit_default=True,
    )
    mask_smoothing: float = setting(
        0.0,
        "Requires `masking`=dynamic. Exponent s. A word is drawn with probability proportional to "
        "the mean of count ** -s over its tokens; count is a token's frequency in the corpus. "
        "Rare words are masked more often. DistilBERT uses 0.7.",
        low=0.0,
        high=10.0,
    )
    dupe_factor: int | None = setting(
        None, "Masked copies of each window; 5 by default. Not with `masking`=dynamic.", low=1
    )
    random_seed: int = setting(12345, "Seed of every random choice.", low=0)
    min_chars: int = setting(20, "Documents with fewer characters are skipped.", low=1)
    keep_duplicates: bool = setting(
        False,
        "Whether to keep all documents with the same cleaned text. By default, one of them is "
        "kept: the one of the corpus with the greatest weight, or else the first.",
    )
    eval_fraction: float = setting(
        0.05, "Fraction of documents that go to the eval split.", low=0.0, high=0.5
    )
    num_shards: int | None = setting(
        None,
        "Number of train shards. By default, it is chosen so that each shard of a teacher cache "
        "stays below 128 MB.",
        low=1,
        high=99999,
    )
    max_workers: int = setting(
        1,
        "Number of processes with `runner`=local; all processors by default.",
        low=1,
        high=512,
        decides_output=False,
    )
    skip_bad_lines: bool = setting(
        False, "Whether to count and skip documents that cannot be read."
    )
    ray: RayConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_dynamic and self.dupe_factor is not None:
            expected = "unset with `masking`=dynamic, which masks differently in each epoch"
            raise InputError(Setting("dupe_factor"), expected, self.dupe_factor)
        if self.mask_smoothing and not self.is_dynamic:
            expected = "used together with `masking`=dynamic"
            raise InputError(Setting("mask_smoothing"), expected, f"`masking`={self.masking}")
        special = f"{self.num_special} special tokens of `segments`={self.segments}"
        if self.window_length < 1:
            received = self.max_seq_length
            raise InputError(Setting("max_seq_length"), f"more than the {special}", received)
        if self.max_predictions_per_seq > self.window_length:
            most = f"at most {self.window_length} (`max_seq_length` less the {special})"
            received = self.max_predictions_per_seq
            raise InputError(Setting("max_predictions_per_seq"), most, received)

    @property
    def is_dynamic(self) -> bool:
        """Whether windows are stored unmasked, and masked when they are read."""
        return self.masking == DYNAMIC

    @property
    def kind(self) -> str:
        """The kind of records in the output directory, as in its manifest."""
        return records.UNMASKED_WINDOWS if self.is_dynamic else records.MASKED_EXAMPLES

    @property
    def copies(self) -> int:
        """Number of stored copies of each window, for a corpus of weight 1."""
        if self.is_dynamic:
            return 1
        return DEFAULT_DUPE_FACTOR if self.dupe_factor is None else self.dupe_factor

    @property
    def num_special(self) -> int:
        """Number of special tokens of an input: [CLS], and a [SEP] for each segment."""
        return 3 if self.segments == "pair" else 2

    @property
    def window_length(self) -> int:
        """Maximum length of a window, in tokens of the document."""
        return self.max_seq_length - self.num_special

    def run_config(self, tokenizer: "Tokenizer", corpora: Sequence["Corpus"]) -> dict[str, Any]:
        """Returns the run configuration: the settings that decide the output, as JSON values.

        Args:
            tokenizer: the tokenizer of the run.
            corpora: the resolved corpora.
        """
        settings = self.output_settings() | {
            "kind": self.kind,
            "vocab": msgspec.to_builtins(tokenizer.info),
            "dupe_factor": self.copies,
            "do_lower_case": tokenizer.do_lower_case,
            **tokenizer.options,
            "corpora": [corpus.reading() for corpus in corpora],
            "random_numbers": seeding.STREAMS,
        }
        if not self.is_dynamic:
            # It has no effect, and run configurations of older directories do not contain it.
            del settings["mask_smoothing"]
        if self.keep_duplicates:
            # Run configurations of older directories do not contain it.
            del settings["keep_duplicates"]
        # Tuples become lists, as in the JSON file to which this is compared.
        return json.loads(json.dumps(settings))
