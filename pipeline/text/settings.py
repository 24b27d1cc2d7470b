"""What stage 1a was asked for."""

import dataclasses
import json
from typing import Any

from data_specs import records
from pipeline.errors import InputError
from pipeline.storage.manifest import VocabInfo


@dataclasses.dataclass(frozen=True)
class MaskedExamplesConfig:
    """What `create_pretraining_data` was asked for; fields are named as its flags."""

    input_dir: str
    output_dir: str
    vocab_file: str
    do_lower_case: bool = True
    do_whole_word_mask: bool = True
    segmenter: str = "jieba"
    segments: str = "pair"
    text_fields: tuple[str, ...] = ("title", "content")
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
        if not self.text_fields:
            raise InputError("--text_fields: expected the names of fields, received none")

    @property
    def num_special(self) -> int:
        """Special tokens of an input: [CLS], and a [SEP] for each segment."""
        return 3 if self.segments == "pair" else 2

    @property
    def window_length(self) -> int:
        """The longest window, in tokens of the document."""
        return self.max_seq_length - self.num_special

    def request(self, vocab: VocabInfo) -> dict[str, Any]:
        """Returns the settings that decide the data, as JSON values."""
        settings = dataclasses.asdict(self)
        for name in ("input_dir", "output_dir", "vocab_file", "max_workers"):
            del settings[name]
        request = {"kind": records.MASKED_EXAMPLES, "vocab": dataclasses.asdict(vocab), **settings}
        return json.loads(json.dumps(request))
