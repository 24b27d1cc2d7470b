"""Averages teacher caches of several teachers over the same masked examples into one cache.

offline_distill merge_caches --input_dirs=CACHE_A,CACHE_B --weights=0.5,0.5 --output_dir=MERGED

Probabilities are averaged at temperature 1, the only temperature of the merged cache. The merged
cache holds a top-k. Re-run the command to resume an interrupted merge.
"""

import collections
import dataclasses
import functools
import math
import platform
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags as absl_flags

from data_specs import records
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_numbers, parse_words, setting
from pipeline.commands import flags, running
from pipeline.storage import cache_input, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import CODECS
from pipeline.storage.manifest import Manifest, ShardInfo, TeacherInfo
from pipeline.teacher import summary
from tools.cache_analysis import merging


@dataclasses.dataclass(frozen=True)
class MergeConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    input_dirs: tuple[Location, ...] = setting(
        dataclasses.MISSING,
        "Teacher caches over the same masked examples, separated by commas.",
        parse=parse_words,
    )
    output_dir: Location = setting(
        dataclasses.MISSING,
        "Directory for the merged cache: empty, or that of an interrupted run to resume.",
    )
    weights: tuple[float, ...] | None = setting(
        None,
        "Weight of each cache, a number above 0; for example 2,1. Equal by default.",
        parse=parse_numbers,
    )
    truncation_factor: int | None = setting(
        None,
        "k, the number of tokens stored at a masked position; the largest k of the caches by "
        "default. Required if a cache holds head states.",
        low=1,
    )
    logit_encoding: str = setting("float16", "Codec of the logits.", choices=tuple(CODECS))
    verify: str = setting(
        "full",
        "Check of the input before the run: full reads every byte, sizes compares file sizes.",
        choices=("full", "sizes"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.input_dirs) < 2:
            received = ",".join(map(str, self.input_dirs))
            expected = "two caches or more, separated by commas"
            raise InputError(Setting("input_dirs"), expected, received)
        if self.weights is None:
            return
        if len(self.weights) != len(self.input_dirs):
            expected = f"a list of {len(self.input_dirs)} numbers, one for each of `input_dirs`"
            raise InputError(Setting("weights"), expected, len(self.weights))
        if not all(weight > 0.0 for weight in self.shares):
            received = ",".join(f"{weight:g}" for weight in self.weights)
            raise InputError(Setting("weights"), "a list of numbers above 0", received)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, normalized to a sum of 1."""
        weights = self.weights or (1.0,) * len(self.input_dirs)
        total = math.fsum(weights)
        # Weights with a sum of 0 are refused later.
        return tuple(weight / total if total > 0.0 else 0.0 for weight in weights)


def _teacher_info(config: MergeConfig, caches: Sequence[CacheInput]) -> TeacherInfo:
    """Returns the manifest's description of the merged targets."""
    infos = [cache.manifest.teacher_info for cache in caches]
    if config.truncation_factor is None and any(info.holds_states for info in infos):
        expected = "set to merge a cache of head states, as the merged cache holds a top-k"
        raise InputError(Setting("truncation_factor"), expected, "none")
    # Together, the caches may have no more ids at a position than the largest k.
    largest = max(info.truncation_factor for info in infos)
    truncation_factor = min(config.truncation_factor or largest, caches[0].manifest.vocab.size)
    if truncation_factor > largest:
        expected = f"at most {largest}, the largest k of `input_dirs`"
        raise InputError(Setting("truncation_factor"), expected, config.truncation_factor)
    teachers = [
        {**info.teacher, "weight": weight}
        for info, weight in zip(infos, config.shares, strict=True)
    ]
    masses = [info.truncation_mass for info in infos if info.truncation_mass is not None]
    return TeacherInfo(
        truncation_factor=truncation_factor,
        logit_encoding=config.logit_encoding,
        temperatures=(merging.TEMPERATURE,),
        teacher={"merged": teachers},
        parent=infos[0].parent,
        truncation_mass=min(masses, default=None),
    )


def _run_configuration(
    config: MergeConfig, caches: Sequence[CacheInput], info: TeacherInfo
) -> dict[str, Any]:
    """Returns the run configuration, as JSON values."""
    mass = info.truncation_mass
    return {
        "kind": records.TEACHER_CACHE,
        "merged": [
            {"manifest": cache.manifest.sha256(), "weight": weight}
            for cache, weight in zip(caches, config.shares, strict=True)
        ],
        "parent": info.parent,
        "shards": [shard.file for shard in caches[0].manifest.shards],
        "truncation_factor": info.truncation_factor,
        "temperatures": list(info.temperatures),
        "logit_encoding": info.logit_encoding,
        **({} if mass is None else {"truncation_mass": mass}),
    }


def merge_caches(config: MergeConfig) -> Manifest:
    """Merges teacher caches, or resumes an interrupted merge; returns the manifest.

    Raises:
        InputError: the caches or the directory are invalid. Complete shards stay.
    """
    caches = [CacheInput(path, manifests.load(path)) for path in config.input_dirs]
    merging.expect_same_examples(caches)
    info = _teacher_info(config, caches)
    settings = _run_configuration(config, caches, info)
    manifests.check_output_dir(config.output_dir, settings)
    if (config.output_dir / manifests.MANIFEST_FILE).is_file():
        return manifests.load(config.output_dir)
    for cache in caches:
        manifests.verify(cache.directory, cache.manifest, full=config.verify == "full")
    manifests.reserve_output_dir(config.output_dir, settings)
    source, inputs = caches[0].directory, [cache.manifest for cache in caches]
    # The codec may need the token counts, so they are written before the first shard.
    counts = cache_input.count_tokens(config.output_dir, info, source, inputs[0])
    splits = _merge_shards(config, caches, info)
    # To reproduce the bytes, a run needs the same environment and run configuration.
    environment = {"machine": platform.machine(), "numpy": np.__version__}
    environment |= CODECS[info.logit_encoding].environment
    statistics = _in_common([manifest.statistics for manifest in inputs])
    manifest = dataclasses.replace(
        inputs[0],
        flags={**_in_common([manifest.flags for manifest in inputs]), **settings},
        splits=splits,
        statistics={**statistics, "environment": environment},
        teacher_info=info,
        token_counts=counts,
        output_table=None,
    )
    manifests.copy_tokenizer(source, manifest, config.output_dir)
    manifests.publish(config.output_dir, manifest)
    return manifest


def _merge_shards(
    config: MergeConfig, caches: Sequence[CacheInput], info: TeacherInfo
) -> dict[str, tuple[ShardInfo, ...]]:
    inputs, completed = caches[0].manifest, {}
    for shard in inputs.shards:
        completed[shard.file] = manifests.completed_shard(config.output_dir, shard.file)
    total = sum(shard.num_examples for shard in inputs.shards if completed[shard.file] is None)
    with tqdm.tqdm(total=total, unit=" examples", desc="merge", smoothing=0.1) as bar:
        merger = merging.CacheMerger(
            caches=caches,
            weights=config.shares,
            codec=cache_input.make_codec(config.output_dir, info, inputs.vocab.size),
            on_examples=bar.update,
        )
        for file in [file for file, shard in completed.items() if shard is None]:
            measured = collections.Counter() if manifests.varies_in_size(info) else None
            merged = merger.records(file, measured)
            sums = functools.partial(dict, measured=measured)
            completed[file] = serialization.write_shard(config.output_dir, file, merged, sums)
    return {
        split: tuple(completed[shard.file] for shard in shards)
        for split, shards in inputs.splits.items()
    }


def _in_common(mappings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the entries that are equal in all mappings.

    The flags of the masked examples are among them.
    """
    first, *others = mappings
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def _merge(values: absl_flags.FlagValues) -> None:
    manifest = merge_caches(flags.read_config(values, MergeConfig))
    print("\n".join(summary.describe(manifest)))
    print(f"teacher cache: {values.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(MergeConfig), _merge, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
