"""A safe YAML loader that refuses code, aliases, ambiguous numbers and repeated keys."""

import re
from typing import Any

import yaml

# Decimal integers that fit in 64 bits.
_WHOLE_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")


class Loader(yaml.SafeLoader):
    """A loader that reads only plain values.

    With aliases, a short file could expand to more values than fit in memory, or contain itself.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Reads a decimal number. Other bases are refused, for example 1:1:1 with base 60."""
        text = self.construct_scalar(node)
        if _WHOLE_NUMBER.fullmatch(text):
            return int(text)
        if node.tag.endswith(":float") and ":" not in text:
            return self.construct_yaml_float(node)
        problem = f"expected a plain number, received {text[:200]!r}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses repeated keys."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise yaml.MarkedYAMLError(problem="a repeated key", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


for _tag in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", Loader.construct_number)
for _tag in ("binary", "omap", "pairs", "set"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", Loader.construct_undefined)
