"""Downloads models of the hub that settings name, and replaces them by their directories.

Each process downloads into the hub's cache of its host. Run configurations record checksums of
a model's files, so the output does not depend on the place that a model was read from.
"""

import dataclasses
import sys
from typing import Any, TypeVar

from pipeline.base import hub_id
from pipeline.base.hub_id import HubModel
from pipeline.base.location import Location
from pipeline.base.settings import Settings, declaration_of, parse_model

Config = TypeVar("Config", bound=Settings)


def with_downloaded_models(config: Config) -> Config:
    """Returns settings in which each model of the hub is replaced by its directory.

    Nested settings are included. Without a model of the hub, no package is imported.

    Raises:
        InputError: a model does not exist, or cannot be downloaded or read.
    """
    changes = {}
    for field in dataclasses.fields(config):
        declaration, value = declaration_of(field), getattr(config, field.name)
        if isinstance(value, Settings):
            replacement = with_downloaded_models(value)
        else:
            files = declaration.hub_files if declaration else None
            replacement = _downloaded_value(value, files)
        if replacement is not value:
            changes[field.name] = replacement
    return dataclasses.replace(config, **changes) if changes else config


def _downloaded_value(value: Any, files: str | None) -> Any:
    if isinstance(value, HubModel):
        return download(value, files)
    if isinstance(value, tuple) and any(isinstance(item, HubModel) for item in value):
        return tuple(_downloaded_value(item, files) for item in value)
    return value


def relocate_to_host(config: Config) -> Config:
    """Returns another host's settings, with models of its hub cache in the cache of this host.

    Raises:
        InputError: see `with_downloaded_models`.
    """
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        model = hub_id.snapshot_of(value) if isinstance(value, Location) else None
        if model is not None:
            changes[field.name] = dataclasses.replace(model, setting=field.name)
    return with_downloaded_models(dataclasses.replace(config, **changes))


def download(model: HubModel | Location, files: str) -> Location:
    """Downloads the needed files of a model, and returns its directory.

    Args:
        model: the model. A directory is returned as it is.
        files: `hub_id.MODEL` or `hub_id.TOKENIZER`.

    Raises:
        InputError: the model does not exist, or cannot be downloaded or read.
    """
    if not isinstance(model, HubModel):
        return model
    from pipeline.hub import client
    from pipeline.hub.files import MissingFilesError, needed_files

    snapshot = client.open_snapshot(model)
    try:
        names = needed_files(snapshot, files)
    except MissingFilesError:
        # If the hub is unreachable, the files are only missing in the cache.
        if snapshot.failure is not None:
            raise snapshot.failure from None
        raise
    for name in names:
        snapshot.fetch(name)
    snapshot.remember()
    note = "" if snapshot.failure is None else " (from the cache, as the hub is unreachable)"
    print(f"{model}: commit {snapshot.commit} in {snapshot.folder}{note}", file=sys.stderr)
    return parse_model(str(snapshot.folder), model.setting)
