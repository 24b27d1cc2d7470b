"""Codecs of teacher targets, and the tables of all codecs.

To add a codec, write a class in a module of this package. Declare its features in
`data_specs.records`, and add one line to a table below.
"""

from pipeline.base.tables import load_entry
from pipeline.storage.codecs.base import TargetCodec, TopKCodec
from pipeline.storage.codecs.hidden import HiddenCodec
from pipeline.storage.codecs.states import StatesCodec

# Codecs of the top-k, by the values of `logit_encoding`.
_CODECS = {
    "float16": "float16:Float16Codec",
    "compact": "compact:CompactCodec",
}
CODECS: dict[str, type[TopKCodec]] = {
    name: load_entry(__name__, entry) for name, entry in _CODECS.items()
}
# The value of `logit_encoding` for the codec that stores the whole distribution.
STATES = "states"
ENCODINGS: dict[str, type[TargetCodec]] = {**CODECS, STATES: StatesCodec}
# Codecs of hidden states, by the values of `hidden_encoding`.
_HIDDEN_CODECS = {
    "float16": "hidden:Float16HiddenCodec",
    "int8": "hidden:Int8HiddenCodec",
}
HIDDEN_CODECS: dict[str, type[HiddenCodec]] = {
    name: load_entry(__name__, entry) for name, entry in _HIDDEN_CODECS.items()
}
