"""Capture and distillation on JAX, from serialized records to a shard and to training batches.

Records are random and are read and written by NumPy. Neither TensorFlow nor a tokenizer is needed.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np

from data_specs import records
from pipeline.base.location import Location
from pipeline.base.prefetch import prefetch
from pipeline.storage import serialization
from pipeline.storage.codecs import CODECS
from pipeline.storage.codecs.base import TargetCodec
from pipeline.storage.manifest import TRAIN, Manifest, TeacherInfo
from pipeline.storage.records import MaskedExample, TeacherTargets
from pipeline.teacher import capture, forward
from pipeline.teacher.settings import TeacherCacheConfig
from pipeline.tokenizers.vocabulary import VocabInfo
from tools.dev.workloads import step_programs
from tools.dev.workloads.step_programs import Arrays, Workload

_SEED = 12345
_SHARD = "train-00000-of-00001.tfrecord"


@dataclasses.dataclass(frozen=True)
class RecordStages:
    """Both stages over one shard of random masked examples.

    Attributes:
        workload: workload with a cache of the top-k.
        batch_size: number of examples of a batch, for both stages.
        num_batches: number of batches in the shard.
        folder: an empty folder for the shard of the teacher cache.
    """

    workload: Workload
    batch_size: int
    num_batches: int
    folder: Location

    @property
    def num_examples(self) -> int:
        """Number of examples in the shard."""
        return self.batch_size * self.num_batches

    @property
    def manifest(self) -> Manifest:
        """The manifest of the masked examples, which are not on a disk."""
        vocab = VocabInfo(size=self.workload.student.vocab_size, sha256="0" * 64)
        return Manifest(
            kind=records.MASKED_EXAMPLES,
            vocab=vocab,
            special_ids={},
            max_seq_length=self.workload.max_seq_length,
            max_predictions_per_seq=self.workload.max_predictions_per_seq,
            dupe_factor=1,
            seed=_SEED,
            flags={},
            splits={TRAIN: ()},
        )

    @property
    def _codec(self) -> TargetCodec:
        return CODECS[self._info.logit_encoding](self.manifest.vocab.size, self.workload.cached_ids)

    @property
    def _info(self) -> TeacherInfo:
        config, k = TeacherCacheConfig(output_dir="", teacher=""), self.workload.cached_ids
        return TeacherInfo(k, "float16", config.temperatures, teacher={}, parent={})

    def masked_records(self) -> list[bytes]:
        """Returns serialized masked examples of the maximum length."""
        random, workload = np.random.default_rng(_SEED), self.workload
        length, vocab_size = workload.max_seq_length, workload.student.vocab_size
        serialized = []
        for _ in range(self.num_examples):
            positions = random.permutation(length)[: workload.max_predictions_per_seq]
            example = MaskedExample(
                example_id=random.bytes(16),
                input_ids=random.integers(0, vocab_size, length),
                segment_lengths=np.array([length // 2, length - length // 2], np.uint16),
                masked_lm_positions=np.sort(positions).astype(np.uint16),
                masked_lm_ids=random.integers(0, vocab_size, len(positions)),
            )
            serialized.append(serialization.encode_example(example.to_features(vocab_size)))
        return serialized

    def capture(self, serialized: Sequence[bytes], *, warm_up: int = 1) -> float:
        """Writes the shard of the teacher cache and returns the seconds that it took.

        Args:
            serialized: examples of `masked_records`.
            warm_up: number of batches that are computed before the timing, to compile the teacher.
        """
        manifest, info, workload = self.manifest, self._info, self.workload
        config = TeacherCacheConfig(
            output_dir=self.folder,
            teacher="",
            truncation_factor=info.truncation_factor,
            predict_batch_size=self.batch_size,
        )
        model = step_programs.build_teacher(workload)
        select = capture.make_selector(
            config, model, max_positions=workload.max_predictions_per_seq
        )
        pipeline = capture.Capture(
            manifest=manifest,
            info=info,
            batch_size=self.batch_size,
            codec=self._codec,
            forward=forward.compile_forward(model, select),
            on_examples=lambda count: None,
        )
        totals = capture.ShardTotals(manifest.vocab.size)
        examples = [MaskedExample.from_record(record, manifest) for record in serialized]
        first = iter(examples[: warm_up * self.batch_size])
        list(pipeline.records(first, capture.ShardTotals(manifest.vocab.size)))
        start = time.perf_counter()
        decoded = (MaskedExample.from_record(record, manifest) for record in serialized)
        serialization.write_shard(self.folder, _SHARD, pipeline.records(decoded, totals))
        return time.perf_counter() - start

    def batches(self) -> Iterator[tuple[Arrays, Arrays]]:
        """Yields the training batches of the shard that `capture` wrote, decoded in a thread."""
        manifest, info, codec = self.manifest, self._info, self._codec
        examples = (
            MaskedExample.from_record(record, manifest)
            for record in serialization.read_records(self.folder / _SHARD)
        )

        def make() -> Iterator[tuple[Arrays, Arrays]]:
            while batch := list(itertools.islice(examples, self.batch_size)):
                yield self._to_arrays(
                    batch,
                    [
                        TeacherTargets.from_features(example.features, codec, info)
                        for example in batch
                    ],
                )

        return prefetch(make())

    def _to_arrays(
        self, examples: Sequence[MaskedExample], targets: Sequence[TeacherTargets]
    ) -> tuple[Arrays, Arrays]:
        """Returns inputs and targets in the format of `pipeline.distill.batches`."""
        inputs = forward.build_batch(
            examples,
            batch_size=self.batch_size,
            max_seq_length=self.workload.max_seq_length,
            max_predictions_per_seq=self.workload.max_predictions_per_seq,
        )
        labels = inputs.pop(records.MASKED_LM_IDS)
        return inputs, {
            records.MASKED_LM_IDS: labels,
            records.MASKED_LM_WEIGHTS: np.ones(labels.shape, np.float32),
            records.TOPK_IDS: np.stack([target.ids for target in targets]),
            records.TOPK_LOGITS: np.stack([target.logits for target in targets]),
            records.LOG_TAIL_MASSES: np.stack([target.log_tail_masses for target in targets]),
        }
