"""What stage 1a was asked for."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline.errors import InputError
from pipeline.text.documents import Corpus
from pipeline.text.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class MaskedExamplesConfig:
    """What `create_pretraining_data` was asked for; fields are named as its flags.

    `corpora` are what `--input_dir`, `--corpus_spec`, `--tfds_name` and `--corpora` name.
    """

    corpora: tuple[CorpusSource, ...]
    output_dir: str
    vocab_file: str
    do_lower_case: bool | None = None
    do_whole_word_mask: bool = True
    segments: str = "pair"
    max_seq_length: int = 512
    max_predictions_per_seq: int = 20
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    doc_stride: int = 256
    dupe_factor: int = 5
    random_seed: int = 12345
    min_chars: int = 20
    eval_fraction: float = 0.05
    num_shards: int | None = None
    max_workers: int = 1
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        if self.window_length < 1:
            raise InputError(
                f"--max_seq_length: expected more than the {self.num_special} special tokens of "
                f"--segments={self.segments}, received {self.max_seq_length}"
            )
        if self.max_predictions_per_seq > self.window_length:
            raise InputError(
                f"--max_predictions_per_seq: expected at most {self.window_length} "
                f"(--max_seq_length={self.max_seq_length} less {self.num_special} special tokens), "
                f"received {self.max_predictions_per_seq}"
            )

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
        for name in ("output_dir", "vocab_file", "max_workers"):
            del settings[name]
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
        vocab = dataclasses.asdict(tokenizer.info)
        request = {"kind": records.MASKED_EXAMPLES, "vocab": vocab, **settings}
        return json.loads(json.dumps(request))
