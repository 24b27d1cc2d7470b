"""Encodings of teacher targets, and the tables of all of them.

A new codec is a class in a module of this package, its features in `data_specs.records`, and
one line here.
"""

from pipeline.storage.codecs.base import TopKCodec
from pipeline.storage.codecs.compact import CompactCodec
from pipeline.storage.codecs.float16 import Float16Codec
from pipeline.storage.codecs.hidden import Float16HiddenCodec, HiddenCodec, Int8HiddenCodec

# By the names that `logit_encoding` takes.
CODECS: dict[str, type[TopKCodec]] = {
    "float16": Float16Codec,
    "compact": CompactCodec,
}
# By the names that `hidden_encoding` takes.
HIDDEN_CODECS: dict[str, type[HiddenCodec]] = {
    "float16": Float16HiddenCodec,
    "int8": Int8HiddenCodec,
}
