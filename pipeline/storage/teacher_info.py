"""What a teacher cache's manifest says of the teacher, and of what is kept of it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from data_specs.records import HIDDEN_FEATURES
from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.storage.codecs.float16 import CODECS

SHA256 = re.compile(r"[0-9a-f]{64}")
# How the ids of a masked position are chosen: the most probable, or by chance.
TOPK = "topk"
SAMPLED = "sampled"
TRUNCATIONS = (TOPK, SAMPLED)

# Of `TeacherInfo`: what caches made before there was such a thing lack.
_LATER_FIELDS = (
    "hidden_groups",
    "hidden_encoding",
    "hidden_size",
    "truncation",
    "truncation_mass",
)


@dataclasses.dataclass(frozen=True)
class TeacherInfo:
    """What a teacher cache adds.

    Attributes:
        truncation_factor: K, ids kept at a masked position, or the most where that
            varies; draws at one where `truncation` is `sampled`.
        logit_encoding: a name in `pipeline.storage.codecs.float16.CODECS`.
        temperatures: those with a stored tail mass, ascending.
        teacher: the teacher's `config` and the `sha256` of its weights; of a merged
            cache `merged`, a list of its inputs' teachers, each with its `weight`.
        parent: the `sha256` of the masked examples' manifest.
        hidden_groups: the groups of teacher layers, such as `1-6`, whose mean
            hidden state is kept; empty where none is.
        hidden_encoding: a name in `pipeline.storage.codecs.hidden.HIDDEN_CODECS`.
        hidden_size: D of the kept states.
        truncation: one of `TRUNCATIONS`.
        truncation_mass: the mass at which a position's ids end; None for none.
    """

    truncation_factor: int
    logit_encoding: str
    temperatures: tuple[float, ...]
    teacher: Mapping[str, Any]
    parent: Mapping[str, str]
    hidden_groups: tuple[str, ...] = ()
    hidden_encoding: str | None = None
    hidden_size: int | None = None
    truncation: str = TOPK
    truncation_mass: float | None = None

    @property
    def variable(self) -> bool:
        """Whether positions may have fewer than K ids."""
        return self.truncation == SAMPLED or self.truncation_mass is not None

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by the letters of `data_specs.records`."""
        return {
            "K": self.truncation_factor,
            "T": len(self.temperatures),
            "G": len(self.hidden_groups),
            "D": self.hidden_size or 0,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of a manifest.

        What is kept is told only where it is not simply the top-k, as in manifests
        from before there was a choice.
        """
        value = dataclasses.asdict(self)
        if self.truncation == TOPK:
            del value["truncation"]
        if self.truncation_mass is None:
            del value["truncation_mass"]
        return value


def parse_teacher_info(value: Mapping[str, Any], path: str) -> TeacherInfo:
    """Reads and checks the fields of a manifest.

    Args:
        value: the manifest's object.
        path: its file, for messages.

    Raises:
        InputError: a value is not as it must be.
        KeyError: a field is missing.
    """
    fields = dataclasses.fields(TeacherInfo)
    required = [field.name for field in fields if field.name not in _LATER_FIELDS]
    given = {name: value[name] for name in _LATER_FIELDS if value.get(name) is not None}
    info = TeacherInfo(**{name: value[name] for name in required}, **given)
    if info.logit_encoding not in CODECS:
        raise InputError(path, f"logit_encoding in {sorted(CODECS)}", shown(info.logit_encoding))
    expect_count(info.truncation_factor, f"{path}: truncation_factor")
    _expect_truncation(info, path)
    _expect_teacher(info.teacher, path)
    if info.hidden_groups:
        _expect_hidden_states(info, path)
    return dataclasses.replace(
        info,
        temperatures=tuple(float(t) for t in info.temperatures),
        hidden_groups=tuple(str(group) for group in info.hidden_groups),
    )


def expect_count(value: Any, what: str) -> None:
    """Raises InputError unless a value is an integer of at least 0, and of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InputError(what, "a count", shown(value))


def _expect_truncation(info: TeacherInfo, path: str) -> None:
    if info.truncation not in TRUNCATIONS:
        raise InputError(path, f"truncation in {sorted(TRUNCATIONS)}", shown(info.truncation))
    if info.truncation_mass is not None and not 0.0 < info.truncation_mass <= 1.0:
        raise InputError(
            path, "a truncation_mass above 0 and at most 1", shown(info.truncation_mass)
        )


def _expect_hidden_states(info: TeacherInfo, path: str) -> None:
    if info.hidden_encoding not in HIDDEN_FEATURES:
        raise InputError(
            path, f"hidden_encoding in {sorted(HIDDEN_FEATURES)}", shown(info.hidden_encoding)
        )
    expect_count(info.hidden_size, f"{path}: hidden_size")


def _expect_teacher(teacher: Mapping[str, Any], path: str) -> None:
    if "merged" not in teacher:
        if not SHA256.fullmatch(teacher["sha256"]):
            raise InputError(path, "a teacher's SHA-256", shown(teacher["sha256"]))
        return
    for part in teacher["merged"]:
        if not 0.0 < part["weight"] <= 1.0:
            raise InputError(path, "a teacher's weight", shown(part["weight"]))
        _expect_teacher(part, path)
