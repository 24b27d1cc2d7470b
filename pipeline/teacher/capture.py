"""Stage 1b: the teacher runs once over masked examples; what it says is cached."""

import collections
import dataclasses
import itertools
import pathlib
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tqdm

from data_specs import records
from pipeline.errors import InputError
from pipeline.models import checkpoints, layer_groups
from pipeline.models.group_means import mean_state
from pipeline.models.layer_groups import TeacherGroup
from pipeline.models.masked_lm import LOGITS, MaskedLM, gather_positions
from pipeline.runners import local
from pipeline.runners.ahead import ahead
from pipeline.runners.shard_job import ShardJob, assigned_jobs
from pipeline.storage import cache_codec, serialization, shard_info, writer
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.hidden_codec import HIDDEN_CODECS, HiddenCodec
from pipeline.storage.manifest import Manifest, ShardInfo, TeacherInfo
from pipeline.storage.shard_info import FileInfo
from pipeline.storage.teacher_info import SAMPLED, TOPK
from pipeline.storage.topk_codec import TopKCodec
from pipeline.teacher import inference, sampling, teacher_input, truncation
from pipeline.teacher.settings import TeacherCacheConfig

# Targets held in memory: the examples of a block are sorted by length, so that
# more would batch better.
_BLOCK_BYTES = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class _TeacherBatch:
    """What the teacher says of some examples of a block.

    Attributes:
        block: the examples.
        indices: which of them are the batch's.
        output: as `Capture.forward` returns it.
    """

    block: Sequence[inference.MaskedExample]
    indices: np.ndarray
    output: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Capture:
    """Turns records of masked examples into records of the teacher cache.

    Attributes:
        manifest: of the masked examples.
        batch_size: B.
        codec: packs the top-k.
        hidden_codec: packs the hidden states; None without.
        forward: the compiled teacher, from a batch to what is kept of it.
        num_draws: draws at a position where `forward` keeps all logits; None where
            it keeps the top-k.
        on_examples: called with the number of examples just done.
    """

    manifest: Manifest
    batch_size: int
    codec: TopKCodec
    hidden_codec: HiddenCodec | None
    forward: Callable[[inference.Arrays], dict[str, np.ndarray]]
    num_draws: int | None
    on_examples: Callable[[int], None]

    def records(
        self, examples: Iterator[inference.MaskedExample], measured: collections.Counter[str]
    ) -> Iterator[bytes]:
        """Yields the cache's record for each masked example, in order.

        Args:
            examples: the masked examples.
            measured: as `ShardInfo.measured`; each record is added before it comes.
        """
        # Reading, the teacher, and packing with writing go on at the same time.
        blocks = ahead(self._blocks(examples), depth=1)
        done: list[tuple[int, bytes]] = []
        for batch in ahead(self._run_teacher(blocks)):
            chosen = [batch.block[index] for index in batch.indices]
            features = self._features(batch.output, chosen)
            for index, example, added in zip(batch.indices, chosen, features, strict=True):
                shard_info.measure_record(measured, added, self.codec.truncation_factor)
                record = serialization.encode_example({**example.features, **added})
                done.append((index, record))
            self.on_examples(len(chosen))
            if len(done) == len(batch.block):
                yield from (record for _, record in sorted(done))
                done = []

    def _blocks(
        self, examples: Iterator[inference.MaskedExample]
    ) -> Iterator[list[inference.MaskedExample]]:
        """Yields examples that are sorted by length together, in their order."""
        position_bytes = self.codec.truncation_factor * 8
        if self.hidden_codec is not None:
            position_bytes += self.hidden_codec.num_groups * self.hidden_codec.hidden_size * 4
        example_bytes = self.manifest.max_predictions_per_seq * position_bytes
        batches = max(1, _BLOCK_BYTES // (example_bytes * self.batch_size))
        while block := list(itertools.islice(examples, batches * self.batch_size)):
            yield block

    def _run_teacher(
        self, blocks: Iterable[Sequence[inference.MaskedExample]]
    ) -> Iterator[_TeacherBatch]:
        for block in blocks:
            lengths = [len(example.input_ids) for example in block]
            for indices in inference.length_batches(lengths, self.batch_size):
                batch = inference.build_batch(
                    [block[index] for index in indices],
                    batch_size=self.batch_size,
                    max_seq_length=self.manifest.max_seq_length,
                    max_predictions_per_seq=self.manifest.max_predictions_per_seq,
                )
                yield _TeacherBatch(block, indices, self.forward(batch))

    def _features(
        self, output: Mapping[str, np.ndarray], examples: Sequence[inference.MaskedExample]
    ) -> list[dict[str, bytes]]:
        """Returns what the cache adds to each example of a batch."""
        counts = np.array([len(example.masked_lm_ids) for example in examples])
        width = output[records.LABEL_LOG_PROBS].shape[1]
        real = np.arange(width) < counts[:, None]
        kept = {name: value[: len(examples)][real] for name, value in output.items()}
        said = kept[records.TOPK_LOGITS] if self.num_draws is None else kept.pop(LOGITS)
        if not np.isfinite(said).all():
            raise InputError(
                "--teacher: expected finite logits, received NaN or infinity; "
                "is the checkpoint damaged, or does --compute_dtype not suit it?"
            )
        if self.num_draws is not None:
            seed = self.manifest.seed
            drawn = sampling.sample_positions(said, examples, seed=seed, num_draws=self.num_draws)
            kept.update(drawn)
        return self._pack(kept, np.concatenate([[0], np.cumsum(counts)]))

    def _pack(
        self, kept: Mapping[str, np.ndarray], row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        """Returns the features of each example."""
        packed = self.codec.encode(kept[records.TOPK_IDS], kept[records.TOPK_LOGITS], row_splits)
        hidden: list[dict[str, bytes]] = [{} for _ in packed]
        if self.hidden_codec is not None:
            hidden = self.hidden_codec.encode(kept[records.HIDDEN_STATES], row_splits)
        tails = kept[records.LOG_TAIL_MASSES].astype("<f4")
        labels = kept[records.LABEL_LOG_PROBS].astype("<f2")
        for features, states, (begin, end) in zip(
            packed, hidden, itertools.pairwise(row_splits), strict=True
        ):
            features.update(states)
            features[records.LOG_TAIL_MASSES] = tails[begin:end].tobytes()
            features[records.LABEL_LOG_PROBS] = labels[begin:end].tobytes()
        return packed


def _truncation_factor(config: TeacherCacheConfig, source: checkpoints.ModelSource) -> int:
    return min(config.truncation_factor, source.config.vocab_size)


def _request(
    config: TeacherCacheConfig, cache: CacheInput, source: checkpoints.ModelSource
) -> dict[str, Any]:
    groups = _find_groups(config, source)
    hidden = {
        "hidden_groups": [str(group) for group in groups],
        "hidden_encoding": config.hidden_encoding,
        "hidden_size": source.config.hidden_size,
    }
    mass = config.truncation_mass
    shards = [shard.file for shards in cache.manifest.splits.values() for shard in shards]
    whole = manifests.load(cache.directory, flag=cache.flag)
    return {
        "kind": records.TEACHER_CACHE,
        "parent": {"sha256": whole.sha256()},
        "shards": shards,
        "teacher": {"config": source.config.to_dict(), "sha256": source.sha256()},
        "truncation_factor": _truncation_factor(config, source),
        "temperatures": list(config.temperatures),
        "logit_encoding": config.logit_encoding,
        # Absent without, as in requests from before there were any.
        **(hidden if groups else {}),
        **({} if config.truncation == TOPK else {"truncation": config.truncation}),
        **({} if mass is None else {"truncation_mass": mass}),
        "compute_dtype": config.compute_dtype,
        "predict_batch_size": config.predict_batch_size,
        "backend": keras.config.backend(),
    }


def _find_groups(
    config: TeacherCacheConfig, source: checkpoints.ModelSource
) -> tuple[TeacherGroup, ...]:
    """Returns the groups of layers whose hidden states are kept; none unless asked for."""
    if config.cache_hidden_states is None:
        return ()
    return layer_groups.parse_teacher_groups(
        config.cache_hidden_states, source.config.num_hidden_layers, "--cache_hidden_states"
    )


def _hidden_codec(
    config: TeacherCacheConfig, source: checkpoints.ModelSource
) -> HiddenCodec | None:
    groups = _find_groups(config, source)
    if not groups:
        return None
    return HIDDEN_CODECS[config.hidden_encoding](len(groups), source.config.hidden_size)


def keep_function(
    config: TeacherCacheConfig, source: checkpoints.ModelSource
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]:
    """Returns what takes the teacher's outputs of a batch to what is kept of them.

    Args:
        config: what was asked for.
        source: the teacher.
    """
    groups = _find_groups(config, source)

    def keep(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        sampled = config.truncation == SAMPLED
        kept = truncation.truncate(
            outputs[LOGITS],
            batch[records.MASKED_LM_IDS],
            truncation_factor=1 if sampled else _truncation_factor(config, source),
            temperatures=config.temperatures,
            truncation_mass=config.truncation_mass,
        )
        if sampled:
            # The draws are NumPy's: the same on any backend.
            kept[LOGITS] = outputs[LOGITS]
        if groups:
            means = [mean_state(outputs[records.HIDDEN_STATES], group) for group in groups]
            places = batch[records.MASKED_LM_POSITIONS]
            kept[records.HIDDEN_STATES] = keras.ops.stack(
                [gather_positions(mean, places) for mean in means], axis=2
            )
        return kept

    return keep


def create_teacher_cache(config: TeacherCacheConfig) -> Manifest | None:
    """Makes a teacher cache, or finishes one, or does this task's share of it.

    Args:
        config: what was asked for.

    Returns:
        the manifest, or None where shards of other tasks are still missing.

    Raises:
        InputError: the masked examples, the teacher or the directory is not as
            it must be. Shards that are whole stay.
    """
    source = teacher_input.find_teacher(config)
    cache = teacher_input.open_examples(config, source)
    request = _request(config, cache, source)
    manifests.check_claim(config.output_dir, request, flag="--output_dir")
    if (pathlib.Path(config.output_dir) / manifests.MANIFEST_FILE).is_file():
        return manifests.load(config.output_dir, flag="--output_dir")
    manifests.verify(cache.directory, cache.manifest, full=config.verify == "full")
    jobs = [
        ShardJob(split, index, shard.file)
        for split, shards in cache.manifest.splits.items()
        for index, shard in enumerate(shards)
    ]
    mine = assigned_jobs(jobs, num_tasks=config.num_tasks, task_index=config.task_index)
    missing = [job for job in mine if not manifests.completed_shard(config.output_dir, job.file)]
    if missing:
        model = checkpoints.load_masked_lm(
            source, dtype=config.compute_dtype, logits_dtype="float32"
        )
        manifests.claim(config.output_dir, request, flag="--output_dir")
        _count_tokens(config, cache, request)
        _run_teacher(config, cache, source, model, _teacher_info(request), missing)
    return _publish_when_complete(config, cache, request)


def _teacher_info(request: Mapping[str, Any]) -> TeacherInfo:
    return TeacherInfo(
        truncation_factor=request["truncation_factor"],
        logit_encoding=request["logit_encoding"],
        temperatures=tuple(request["temperatures"]),
        teacher=request["teacher"],
        parent=request["parent"],
        hidden_groups=tuple(request.get("hidden_groups", ())),
        hidden_encoding=request.get("hidden_encoding"),
        hidden_size=request.get("hidden_size"),
        truncation=request.get("truncation", TOPK),
        truncation_mass=request.get("truncation_mass"),
    )


def _count_tokens(
    config: TeacherCacheConfig, cache: CacheInput, request: Mapping[str, Any]
) -> FileInfo | None:
    info = _teacher_info(request)
    return cache_codec.count_tokens(config.output_dir, info, cache.directory, cache.manifest)


def _run_teacher(
    config: TeacherCacheConfig,
    cache: CacheInput,
    source: checkpoints.ModelSource,
    model: MaskedLM,
    info: TeacherInfo,
    jobs: Sequence[ShardJob],
) -> None:
    forward = inference.compile_forward(model, keep_function(config, source))
    counts = {
        shard.file: shard.num_examples
        for shards in cache.manifest.splits.values()
        for shard in shards
    }
    total = sum(counts[job.file] for job in jobs)
    with tqdm.tqdm(total=total, unit=" examples", desc="teacher", smoothing=0.1) as bar:
        capture = Capture(
            manifest=cache.manifest,
            batch_size=config.predict_batch_size,
            codec=cache_codec.make_codec(config.output_dir, info, source.config.vocab_size),
            hidden_codec=_hidden_codec(config, source),
            forward=forward,
            num_draws=info.truncation_factor if info.truncation == SAMPLED else None,
            on_examples=bar.update,
        )
        for job in jobs:
            examples = inference.read_examples(cache.directory / job.file, cache.manifest)
            measured: collections.Counter[str] = collections.Counter()
            serialized = capture.records(examples, measured)
            told = measured if manifests.varies_in_size(info) else None
            writer.write_shard(config.output_dir, job.file, serialized, told)


def _publish_when_complete(
    config: TeacherCacheConfig, cache: CacheInput, request: dict[str, Any]
) -> Manifest | None:
    splits: dict[str, tuple[ShardInfo, ...]] = {}
    for split, shards in cache.manifest.splits.items():
        done = [manifests.completed_shard(config.output_dir, shard.file) for shard in shards]
        if None in done:
            return None
        splits[split] = tuple(shard for shard in done if shard is not None)
    manifests.copy_tokenizer(cache.directory, cache.manifest, config.output_dir)
    # What a byte-equal repetition needs, beside the request.
    environment = {
        "machine": platform.machine(),
        "threads": local.num_cpus(),
        "keras": keras.__version__,
        **cache_codec.environment(config.logit_encoding),
    }
    manifest = dataclasses.replace(
        cache.manifest,
        kind=records.TEACHER_CACHE,
        flags={**cache.manifest.flags, **request},
        splits=splits,
        statistics={**cache.manifest.statistics, "environment": environment},
        teacher_info=_teacher_info(request),
        token_counts=_count_tokens(config, cache, request),
    )
    manifests.publish(config.output_dir, manifest)
    return manifest
