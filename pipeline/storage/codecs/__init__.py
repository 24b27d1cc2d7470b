"""Encodings of teacher targets, and the tables of all of them.

A new codec is a class in a module of this package, its features in `data_specs.records`, and
one line here.
"""

from pipeline.base.tables import load_entry
from pipeline.storage.codecs.base import TargetCodec, TopKCodec
from pipeline.storage.codecs.hidden import HiddenCodec
from pipeline.storage.codecs.states import StatesCodec

# Codecs of the top-k, by the names that `logit_encoding` takes.
_CODECS = {
    "float16": "float16:Float16Codec",
    "compact": "compact:CompactCodec",
}
CODECS: dict[str, type[TopKCodec]] = {
    name: load_entry(__name__, entry) for name, entry in _CODECS.items()
}
# And the one that keeps the whole distribution.
STATES = "states"
ENCODINGS: dict[str, type[TargetCodec]] = {**CODECS, STATES: StatesCodec}
# By the names that `hidden_encoding` takes.
_HIDDEN_CODECS = {
    "float16": "hidden:Float16HiddenCodec",
    "int8": "hidden:Int8HiddenCodec",
}
HIDDEN_CODECS: dict[str, type[HiddenCodec]] = {
    name: load_entry(__name__, entry) for name, entry in _HIDDEN_CODECS.items()
}
