"""What stage 1a was asked for."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings
from pipeline.corpora.documents import Corpus
from pipeline.runners.ray import RayConfig
from pipeline.tokenizers.tokens import Tokenizer

STATIC = "static"
DYNAMIC = "dynamic"
# Copies of a window that are masked once and for all, unless `--dupe_factor` says otherwise.
DEFAULT_DUPE_FACTOR = 5


@dataclasses.dataclass(frozen=True)
class MaskedExamplesConfig(Settings):
    """What `create_pretraining_data` was asked for; fields are named as its flags.

    `corpora` are what `--input_dir`, `--corpus_spec`, `--tfds_name` and `--corpora` name.
    `dupe_factor` is None unless given: `copies` is what holds. `ray` is None for processes of
    this machine.
    """

    corpora: tuple[CorpusSource, ...]
    output_dir: Location
    vocab_file: Location
    do_lower_case: bool | None = None
    do_whole_word_mask: bool = True
    segments: str = "pair"
    max_seq_length: int = 512
    max_predictions_per_seq: int = 20
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    doc_stride: int = 256
    masking: str = STATIC
    mask_smoothing: float = 0.0
    dupe_factor: int | None = None
    random_seed: int = 12345
    min_chars: int = 20
    eval_fraction: float = 0.05
    num_shards: int | None = None
    max_workers: int = 1
    skip_bad_lines: bool = False
    ray: RayConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_dynamic and self.dupe_factor is not None:
            raise InputError(
                Setting("dupe_factor"),
                "none beside `masking`=dynamic, which masks each window anew each epoch",
                self.dupe_factor,
            )
        if self.mask_smoothing and not self.is_dynamic:
            raise InputError(
                Setting("mask_smoothing"),
                f"`masking`={DYNAMIC} beside it, as it needs the counts of the whole "
                "corpus before the first mask",
                f"`masking`={self.masking}",
            )
        if self.window_length < 1:
            raise InputError(
                Setting("max_seq_length"),
                f"more than the {self.num_special} special tokens of `segments`={self.segments}",
                self.max_seq_length,
            )
        if self.max_predictions_per_seq > self.window_length:
            raise InputError(
                Setting("max_predictions_per_seq"),
                f"at most {self.window_length} (`max_seq_length`={self.max_seq_length} less "
                f"{self.num_special} special tokens)",
                self.max_predictions_per_seq,
            )

    @property
    def is_dynamic(self) -> bool:
        """Whether windows are stored as they are, and masked when they are read."""
        return self.masking == DYNAMIC

    @property
    def kind(self) -> str:
        """What the directory will hold, as its manifest calls it."""
        return records.UNMASKED_WINDOWS if self.is_dynamic else records.MASKED_EXAMPLES

    @property
    def copies(self) -> int:
        """Copies of each window that are stored, for a corpus of weight 1."""
        if self.is_dynamic:
            return 1
        return DEFAULT_DUPE_FACTOR if self.dupe_factor is None else self.dupe_factor

    @property
    def num_special(self) -> int:
        """Special tokens of an input: [CLS], and a [SEP] for each segment."""
        return 3 if self.segments == "pair" else 2

    @property
    def window_length(self) -> int:
        """The longest window, in tokens of the document."""
        return self.max_seq_length - self.num_special

    def request(self, tokenizer: Tokenizer, corpora: Sequence[Corpus]) -> dict[str, Any]:
        """Returns the settings that decide the data, as JSON values.

        Args:
            tokenizer: what `vocab_file` names.
            corpora: `self.corpora`, resolved.
        """
        settings = dataclasses.asdict(self)
        for name in ("output_dir", "vocab_file", "max_workers", "ray"):
            del settings[name]
        if not self.is_dynamic:
            # A request for static masks says what it always said.
            for name in ("masking", "mask_smoothing"):
                del settings[name]
        settings["dupe_factor"] = self.copies
        settings["do_lower_case"] = tokenizer.do_lower_case
        settings["corpora"] = [
            {
                "name": corpus.label,
                "tfds_name": corpus.tfds_name,
                "weight": corpus.weight,
                **corpus.spec.reading(),
            }
            for corpus in corpora
        ]
        vocab = msgspec.to_builtins(tokenizer.info)
        request = {"kind": self.kind, "vocab": vocab, **settings}
        return json.loads(json.dumps(request))
