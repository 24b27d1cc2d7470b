"""Datasets of the Hugging Face hub as corpora, read through `huggingface_hub`'s file system.

`hf://datasets/ORG/NAME@REVISION/PATTERN` names files of a dataset. Without a pattern, or as
`ORG/NAME` with `hf_split`, the files are those of a split: as the front matter of the dataset's
README.md says, else as their names do. All files are of one commit, whatever is pushed meanwhile.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import BucketLocation, Location

_SETTING = "input_dir"
_TRAIN = "train"
_DATASET = re.compile(
    r"(?:hf://datasets/)?([\w.\-]+/[\w.\-]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?"
)
_README = "README.md"
_MAX_README_BYTES = 2**22
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\n---", re.DOTALL)
_DEFAULT = "default"
# What splits are called in the names of files.
_SPLITS: Mapping[str, tuple[str, ...]] = {
    _TRAIN: (_TRAIN, "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Seconds for a first answer.
_ANSWER = 10.0


def locate(source: CorpusSource, is_data: Callable[[str], bool]) -> Location:
    """Returns the location of a source's files; of a dataset of the hub, at one commit.

    Args:
        is_data: whether a file's name is that of a corpus, and not of a description.

    Raises:
        InputError: a malformed name, or there is no such dataset, revision or split.
    """
    if not source.is_hub:
        return Location.parse(source.input_dir, _SETTING)
    match = _DATASET.fullmatch(source.input_dir)
    if match is None or ".." in source.input_dir:
        raise InputError(Setting(_SETTING), "hf://datasets/ORG/NAME@REVISION", source.input_dir)
    name, revision, pattern = match.groups()
    key = pathlib.PurePosixPath(f"datasets/{name}@{_find_commit(name, revision)}")
    root = BucketLocation("hf", key, _SETTING)
    if not pattern:
        return _Split.of(root, source.hf_split or _TRAIN, is_data)
    if source.hf_split is not None:
        expected = "unset where `input_dir` names the files of a dataset"
        raise InputError(Setting("hf_split"), expected, source.hf_split)
    return root / pattern


def _find_commit(name: str, revision: str | None) -> str:
    """Returns the commit that a dataset's revision is now."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/datasets/{name}"
    try:
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=_ANSWER)
        # The list of a gated dataset's files is public, the files are not.
        huggingface_hub.HfApi().auth_check(name, repo_type="dataset")
    except errors.GatedRepoError as error:
        hint = f"accept the terms at {page}, then set HF_TOKEN or run: hf auth login"
        raise InputError(name, "access to this gated dataset", "none", hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; for a private dataset set HF_TOKEN or run: hf auth login"
        raise InputError(name, f"a dataset of {constants.ENDPOINT}", "none", hint) from error
    except errors.RevisionNotFoundError as error:
        expected = f"a branch, tag or commit of the dataset {name}"
        raise InputError(Setting(_SETTING), expected, revision, f"see {page}/tree/main") from error
    except errors.HFValidationError as error:
        raise InputError(Setting(_SETTING), "the id of a dataset, ORG/NAME", name) from error
    # Whatever the network does, or HF_HUB_OFFLINE.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        hint = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise InputError(name, f"an answer of {constants.ENDPOINT}", reason, hint) from error
    return str(info.sha)


@dataclasses.dataclass(frozen=True, order=True)
class _Split(BucketLocation):
    """A dataset, of which the files of a split are found."""

    sizes: Mapping[BucketLocation, int] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, root: BucketLocation, split: str, is_data: Callable[[str], bool]) -> "_Split":
        """Returns a split of the dataset at a location.

        Raises:
            InputError: it has no such split, or several configurations.
        """
        sizes = {str(path.relative_to(root)): (path, size) for path, size in root.find().items()}
        names = sorted(sizes)
        config = _read_config(root / _README) if _README in sizes else {}
        found = _by_patterns(config, names) or _by_names(
            [name for name in names if is_data(name) and _is_below(name, config.get("data_dir"))]
        )
        if not found.get(split):
            has = ", ".join(name for name, files in sorted(found.items()) if files) or "none"
            raise InputError(Setting("hf_split"), f"a split of {root}, which has {has}", split)
        return cls(root.scheme, root.key, root.setting, dict(sizes[name] for name in found[split]))

    def is_dir(self) -> bool:
        """Returns True: it is a folder of files."""
        return True

    def find(self) -> dict[BucketLocation, int]:
        """Returns the split's files with their sizes."""
        return dict(self.sizes)


def _read_config(readme: BucketLocation) -> Mapping[str, Any]:
    """Returns the one configuration that a dataset's README.md declares, or its default.

    Raises:
        InputError: it declares several.
    """
    match = _FRONT_MATTER.match(readme.read_limited(_MAX_README_BYTES).decode("utf-8", "replace"))
    try:
        content = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise InputError(readme, received=f"its front matter is not YAML ({error})") from error
    listed = content.get("configs") if isinstance(content, dict) else None
    configs = [one for one in listed or () if isinstance(one, dict)] if listed else []
    if len(configs) <= 1:
        return configs[0] if configs else {}
    for config in configs:
        if config.get("default") is True or config.get("config_name") == _DEFAULT:
            return config
    names = ", ".join(str(config.get("config_name")) for config in configs)
    expected = f"the files of one of its configurations ({names})"
    hint = f"name them: {readme.parent}/PATTERN"
    raise InputError(Setting(_SETTING), expected, "a dataset of several", hint)


def _by_patterns(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files of each split as a configuration's `data_files` say; empty without them."""
    from fsspec.utils import glob_translate

    found: dict[str, list[str]] = {}
    for split, pattern in _data_files(config.get("data_files")):
        matches = re.compile(glob_translate(pattern.removeprefix("./"))).match
        found.setdefault(split, []).extend(filter(matches, names))
    return found


def _data_files(value: object) -> Iterator[tuple[str, str]]:
    """Yields split and pattern: of a pattern, a list of them, or a list of splits with theirs."""
    for item in value if isinstance(value, list) else [value]:
        split, paths = _TRAIN, item
        if isinstance(item, dict):
            split, paths = str(item.get("split", _TRAIN)), item.get("path")
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                yield split, path


def _is_below(name: str, folder: object) -> bool:
    return not isinstance(folder, str) or name.startswith(f"{folder.strip('./')}/")


def _by_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files of each split by the words in their names; without any all are train's.

    Example: `data/train-00000-of-00001.parquet` and `en/train/a.jsonl` are of `train`.
    """
    found: dict[str, list[str]] = {}
    for split, words in _SPLITS.items():
        pattern = re.compile(rf"(?:^|[/._\- ])(?:{'|'.join(words)})(?:[/._\- \d]|$)")
        found[split] = [name for name in names if pattern.search(name)]
    return found if any(found.values()) else {_TRAIN: list(names)}
