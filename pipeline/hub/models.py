"""Directories in place of models of the hub, in settings and elsewhere.

Each process, on each host, downloads into the hub's cache there. What decides the output is
recorded by its content, so that it does not matter where a model came from.
"""

import dataclasses
import sys
from typing import Any, TypeVar

from pipeline.base import hub_id
from pipeline.base.hub_id import HubModel
from pipeline.base.location import Location
from pipeline.base.settings import Settings, declaration_of, parse_model

Config = TypeVar("Config", bound=Settings)


def downloaded(config: Config) -> Config:
    """Returns settings with a directory in place of each model of the hub.

    Nested settings included. Nothing is imported where there is no such model.

    Raises:
        InputError: there is no such model, or it cannot be downloaded or read.
    """
    changes = {}
    for field in dataclasses.fields(config):
        declaration, value = declaration_of(field), getattr(config, field.name)
        if isinstance(value, Settings):
            new = downloaded(value)
        else:
            new = _downloaded_value(value, declaration.hub_files if declaration else None)
        if new is not value:
            changes[field.name] = new
    return dataclasses.replace(config, **changes) if changes else config


def _downloaded_value(value: Any, files: str | None) -> Any:
    if isinstance(value, HubModel):
        return download(value, files)
    if isinstance(value, tuple) and any(isinstance(item, HubModel) for item in value):
        return tuple(_downloaded_value(item, files) for item in value)
    return value


def on_this_host(config: Config) -> Config:
    """Returns settings that came from another host, their models of its hub's cache in this one's.

    Raises:
        InputError: see `downloaded`.
    """
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        model = hub_id.snapshot_of(value) if isinstance(value, Location) else None
        if model is not None:
            changes[field.name] = dataclasses.replace(model, setting=field.name)
    return downloaded(dataclasses.replace(config, **changes))


def download(model: HubModel | Location, files: str) -> Location:
    """Downloads the needed files of a model, and returns its directory.

    Args:
        model: a directory stays as it is.
        files: `hub_id.MODEL` or `hub_id.TOKENIZER`.

    Raises:
        InputError: there is no such model, or it cannot be downloaded or read.
    """
    if not isinstance(model, HubModel):
        return model
    from pipeline.hub import client
    from pipeline.hub.files import MissingFilesError, needed_files

    snapshot = client.open_snapshot(model)
    try:
        names = needed_files(snapshot, files)
    except MissingFilesError:
        # The cache does not have everything.
        if snapshot.failure is not None:
            raise snapshot.failure from None
        raise
    for name in names:
        snapshot.fetch(name)
    snapshot.remember()
    note = "" if snapshot.failure is None else " (from the cache: the hub is not reached)"
    print(f"{model}: commit {snapshot.commit} in {snapshot.folder}{note}", file=sys.stderr)
    return parse_model(str(snapshot.folder), model.setting)
