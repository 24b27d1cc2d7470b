"""Models of the Hugging Face hub: their ids in a user's text, and their folders in its cache."""

import dataclasses
import os
import re
import urllib.parse

from pipeline.base.errors import InputError
from pipeline.base.location import Location

# The files to download for a setting: those of the model, or only those of its tokenizer.
MODEL = "model"
TOKENIZER = "tokenizer"

_PART = r"\w(?:[\w.\-]*\w)?"
_ID = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)
_MAX_ID = 96
# Names of branches, tags and commits that are safe in a path.
_REVISION = re.compile(r"\w[\w.\-+/]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_URL = re.compile(r"(hf|https?)://(.*)", re.DOTALL)
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
# Ids without an organization belong to the hub's first models. All encoders among them have a
# hyphen, so any other single word is read as a folder.
_LEGACY_ID = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)+")
_FILE_SUFFIXES = (
    *(".bin", ".ckpt", ".h5", ".index", ".json", ".model", ".safetensors", ".spm"),
    *(".txt", ".vocab", ".zip"),
)
_FOLDER = "models--"
_SNAPSHOTS = "snapshots"


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A model of the hub that a user names or that is stored in the hub's cache.

    Attributes:
        id: for example `hfl/chinese-roberta-wwm-ext-large`.
        revision: a branch, tag or commit; None for the default branch.
        setting: the setting whose value this is; errors name it.
    """

    id: str
    revision: str | None = None
    setting: str | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def is_commit(text: str) -> bool:
    """Returns whether a string is a full commit hash."""
    return _COMMIT.fullmatch(text) is not None


def parse(text: str, setting: str | None = None) -> HubModel | None:
    """Parses the name of a hub model; returns None for a path.

    `ORG/NAME` and `ORG/NAME@REVISION` are ids, unless that path exists on this machine.
    `hf://ORG/NAME` and the URL of a model's page always name a model of the hub.

    Raises:
        InputError: a URL that names no model of the hub.
    """
    if match := _URL.fullmatch(text):
        model = _parse_id(match[2].rstrip("/") if match[1] == "hf" else _read_page(text))
        if model is None:
            expected = f"hf://ORG/NAME@REVISION or the page of a model on {_HOSTS[0]}"
            raise InputError(text, expected)
    else:
        model = _parse_id(text)
        if model is None or not _looks_like_id(model.id) or os.path.exists(text):
            return None
    return dataclasses.replace(model, setting=setting)


def snapshot_folder(cache: Location, model: HubModel, commit: str) -> Location:
    """Returns the folder in the hub's cache for a model's files at a commit."""
    return cache / f"{_FOLDER}{model.id.replace('/', '--')}" / _SNAPSHOTS / commit


def snapshot_of(path: Location) -> HubModel | None:
    """Returns the model that a folder of the hub's cache contains; None for any other folder.

    The model's revision is the commit of the folder.
    """
    folder, name, commit = ("", "", "", *path.parts)[-3:]
    if name != _SNAPSHOTS or not folder.startswith(_FOLDER) or not is_commit(commit):
        return None
    return _parse_id(f"{folder.removeprefix(_FOLDER).replace('--', '/')}@{commit}")


def display_name(path: Location) -> str:
    """Returns the display name of a model directory: in the hub's cache, the model's id."""
    snapshot = snapshot_of(path)
    return path.name if snapshot is None else snapshot.id


def _parse_id(text: str) -> HubModel | None:
    name, at, revision = text.partition("@")
    is_id = _ID.fullmatch(name) and len(name) <= _MAX_ID and "--" not in name and ".." not in name
    is_revision = _REVISION.fullmatch(revision) and ".." not in revision and revision[-1] != "/"
    if not is_id or (at and not is_revision):
        return None
    return HubModel(name, revision or None)


def _looks_like_id(name: str) -> bool:
    if "/" not in name:
        return _LEGACY_ID.fullmatch(name) is not None
    return not name.lower().endswith(_FILE_SUFFIXES)


def _read_page(url: str) -> str:
    """Returns the id in the URL of a hub page: `ORG/NAME`, `ORG/NAME@REVISION`; "" if none."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    page = urllib.parse.urlsplit(url)
    if endpoint and url.startswith(f"{endpoint}/"):
        page = urllib.parse.urlsplit(url.removeprefix(endpoint))
    elif page.hostname not in _HOSTS:
        return ""
    name, tree, revision = page.path.strip("/").partition("/tree/")
    return f"{name}@{urllib.parse.unquote(revision)}" if tree else name
