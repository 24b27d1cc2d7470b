"""Stage 1a: a corpus becomes masked examples, or windows that are masked when they are read.

    chunks of documents ─ workers: tokens, windows, masks ─ spill files sorted by key
        └─ workers: each shard takes its range of keys out of every spill file

An example's key is a hash, so that the copies of a window spread over all
shards and each shard comes out shuffled, in an order that depends on nothing
but seed and text.
"""

import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tqdm

from data_specs import records
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.base.location import Location
from pipeline.corpora import corpus
from pipeline.masking import masked_chunks
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.masking.shard_plan import ShardPlan, make_plan
from pipeline.runners import workers as runners
from pipeline.runners.workers import ShardJob, Workers
from pipeline.storage import manifest as manifests
from pipeline.storage import spill, token_counts
from pipeline.storage.manifest import Manifest
from pipeline.tokenizers.loading import load_tokenizer
from pipeline.tokenizers.tokens import Tokenizer

_PLAN_FILE = "plan.json"


def _plan_path(config: MaskedExamplesConfig) -> Location:
    """In a bucket beside the shards: another machine, too, must not mix two corpora."""
    return config.output_dir / masked_chunks.SPILL_FOLDER / _PLAN_FILE


def _remove_spill(config: MaskedExamplesConfig) -> None:
    shutil.rmtree(masked_chunks.spill_folder(config), ignore_errors=True)
    _plan_path(config).unlink(missing_ok=True)


def _mask_corpus(
    config: MaskedExamplesConfig,
    corpus_files: Sequence[corpus.CorpusFile],
    workers: Workers,
) -> list[Mapping[str, Any]]:
    """First half: masks every chunk into its spill file and returns their headers."""
    mask = functools.partial(
        masked_chunks.mask_chunk, config, is_only_writer=not workers.may_repeat_jobs
    )
    results = workers.run(mask, corpus.read_chunks(corpus_files))
    headers = []
    total = sum(file.bytes for file in corpus_files)
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="masking") as bar:
        for result in results:
            headers.append(result.header)
            bar.update(result.bytes_read - bar.n)
    return headers


def _make_records(
    config: MaskedExamplesConfig, plan: ShardPlan, job: ShardJob
) -> tuple[Iterator[bytes], None]:
    return spill.read_sorted(
        masked_chunks.expect_chunks(config, plan.fingerprints),
        plan.keys(job),
        expected_bytes=plan.record_bytes // plan.num_shards[job.split],
    ), None


def _start_jobs(
    config: MaskedExamplesConfig, plan: ShardPlan, jobs: Sequence[ShardJob], workers: Workers
) -> Iterator[manifests.ShardInfo]:
    """Yields the shards as they are written, in the jobs' order."""
    done = {job: manifests.completed_shard(config.output_dir, job.file) for job in jobs}
    missing = [job for job in jobs if done[job] is None]
    make = functools.partial(_make_records, config, plan)
    made = runners.make_shards(workers, config.output_dir, make, missing)
    for job in jobs:
        yield done[job] or next(made)


def _write_shards(
    config: MaskedExamplesConfig, plan: ShardPlan, workers: Workers
) -> dict[str, tuple[manifests.ShardInfo, ...]]:
    """Second half: every shard out of the spill files."""
    jobs = plan.jobs()
    _expect_same_corpus(config, plan, jobs)
    results = _start_jobs(config, plan, jobs, workers)
    splits: dict[str, list[manifests.ShardInfo]] = {split: [] for split in plan.num_shards}
    with tqdm.tqdm(total=len(jobs), unit="shard", desc="writing") as bar:
        for job, shard in zip(jobs, results, strict=True):
            splits[job.split].append(shard)
            bar.update()
    return {split: tuple(shards) for split, shards in splits.items()}


def _expect_same_corpus(
    config: MaskedExamplesConfig, plan: ShardPlan, jobs: Sequence[ShardJob]
) -> None:
    """Refuses to mix shards of two corpora, should the text have changed between two runs."""
    path = _plan_path(config)
    started = path.read_json().get("corpus") if path.is_file() else plan.corpus_digest
    if started != plan.corpus_digest and any(
        manifests.completed_shard(config.output_dir, job.file) for job in jobs
    ):
        raise InputError(
            Setting("input_dir"),
            received=f"the text has changed since {config.output_dir} was begun: expected "
            f"digest {started}, received {plan.corpus_digest}",
        )
    path.write_json({"corpus": plan.corpus_digest})


def create_masked_examples(config: MaskedExamplesConfig) -> Manifest:
    """Makes a directory of masked examples or unmasked windows, or finishes one.

    Args:
        config: what was asked for.

    Returns:
        the manifest that stands in `config.output_dir` now.

    Raises:
        InputError: the corpus, the vocabulary or the directory is not as it must
            be. A directory that this call began, and in which no shard is
            complete, is then as it was before.
    """
    _expect_output_outside(config)
    config = runners.absolute_locations(config)
    corpora = corpus.resolve(config.corpora)
    tokenizer = load_tokenizer(config.vocab_file, do_lower_case=config.do_lower_case)
    corpus_files = corpus.open_corpora(config.corpora, corpora)
    request = config.request(tokenizer, corpora)
    is_new = manifests.reserve_output_dir(config.output_dir, request)
    if (config.output_dir / manifests.MANIFEST_FILE).is_file():
        manifest = manifests.load(config.output_dir)
        _expect_corpus_size(config, manifest, corpus_files)
    else:
        try:
            manifest = _make(config, corpus_files, tokenizer, request)
        except InterruptedRunError:
            raise
        except InputError:
            # What is complete stays, and so does what tells whose it is.
            if is_new and not any(config.output_dir.glob("*.tfrecord")):
                _withdraw(config, tokenizer)
            raise
    _remove_spill(config)
    return manifest


def _expect_output_outside(config: MaskedExamplesConfig) -> None:
    for source in config.corpora:
        if source.input_dir is None or source.tfds_name is not None:
            continue
        if config.output_dir.is_inside(Location.parse(source.input_dir)):
            raise InputError(
                Setting("output_dir"),
                f"a folder outside `input_dir`={source.input_dir}, which is read with all below it",
                config.output_dir,
            )


def _make(
    config: MaskedExamplesConfig,
    corpus_files: Sequence[corpus.CorpusFile],
    tokenizer: Tokenizer,
    request: Mapping[str, Any],
) -> Manifest:
    for name, content in tokenizer.files().items():
        (config.output_dir / name).write_whole(content)
    masked_chunks.spill_folder(config).mkdir(parents=True, exist_ok=True)
    workers = runners.open_workers(
        config.ray,
        config.output_dir,
        max_workers=config.max_workers,
        shared=masked_chunks.spill_folder(config),
    )
    with workers:
        headers = _mask_corpus(config, corpus_files, workers)
        id_bytes = records.id_dtype(tokenizer.info.size).itemsize
        plan = make_plan(config, headers, corpus_files, id_bytes)
        splits = _write_shards(config, plan, workers)
    manifest = Manifest(
        kind=config.kind,
        vocab=tokenizer.info,
        special_ids=tokenizer.special_ids,
        max_seq_length=config.max_seq_length,
        max_predictions_per_seq=config.max_predictions_per_seq,
        dupe_factor=config.copies,
        seed=config.random_seed,
        flags=request,
        splits=splits,
        tokenizer_files=tuple(sorted(tokenizer.files())),
        statistics=plan.statistics,
        token_counts=_write_token_counts(config, plan, tokenizer.info.size),
    )
    manifests.publish(config.output_dir, manifest)
    return manifest


def _write_token_counts(
    config: MaskedExamplesConfig, plan: ShardPlan, vocab_size: int
) -> manifests.FileInfo | None:
    if not config.is_dynamic:
        return None
    paths = [masked_chunks.counts_path(config, index) for index in range(len(plan.fingerprints))]
    path = config.output_dir / token_counts.TOKEN_COUNTS_FILE
    return token_counts.write_counts(path, token_counts.sum_counts(paths, vocab_size))


def _withdraw(config: MaskedExamplesConfig, tokenizer: Tokenizer) -> None:
    """Leaves the directory as it was found: a corrected command may use it."""
    _remove_spill(config)
    for name in (*tokenizer.files(), manifests.REQUEST_FILE):
        (config.output_dir / name).unlink(missing_ok=True)


def _expect_corpus_size(
    config: MaskedExamplesConfig, manifest: Manifest, corpus_files: Sequence[corpus.CorpusFile]
) -> None:
    there = tuple(manifest.statistics[name] for name in ("corpus_files", "corpus_bytes"))
    here = len(corpus_files), sum(file.bytes for file in corpus_files)
    if there != here:
        raise InputError(
            Setting("output_dir"),
            received=f"{config.output_dir} was made from {there[0]} files, {there[1]} bytes",
            hint=f"received {here[0]} files, {here[1]} bytes; choose an empty directory",
        )


def describe(manifest: Manifest) -> Iterator[str]:
    """Yields the lines of the summary."""
    counts = manifest.statistics
    skipped = counts["skipped"]
    tokens = counts.get("tokens", 0)
    rate = counts.get("unknown_tokens", 0) / max(1, tokens)
    yield f"documents  {counts['documents']:,} read, {sum(skipped.values()):,} skipped"
    for reason, count in sorted(skipped.items()):
        yield f"             {count:,} {reason}"
    by_corpus = counts["examples_by_corpus"]
    if len(by_corpus) > 1:
        for label, count in sorted(by_corpus.items()):
            yield f"             {count:,} examples of {label}"
    yield f"tokens     {tokens:,}, {rate:.3%} [UNK]"
    yield f"windows    {counts['windows']:,}"
    for split, shards in manifest.splits.items():
        size = sum(shard.bytes for shard in shards)
        yield (
            f"{split:<10} {manifest.num_examples(split):,} examples, {size:,} bytes, "
            f"{len(shards):,} shard{'s' * (len(shards) != 1)}"
        )
    if manifest.kind == records.UNMASKED_WINDOWS:
        yield "masked     by run_distill, anew each epoch"
    else:
        yield f"masked     {counts['masked_positions']:,} positions"
