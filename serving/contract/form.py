"""Read typed values out of a tree of text, and collect every problem with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any


class Form:
    """One reading of a tree. A value that is wrong is replaced by an empty one, so that the rest is read too."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def mapping(self, node: object, at: str, keys: set[str] | None = None) -> dict[str, Any]:
        """A node as a mapping. keys: those that it may have; None: any."""
        if not isinstance(node, dict):
            self.problems.append(f"{at or 'the file'}: {'is missing' if node is None else 'is not a mapping'}")
            return {}
        for key in sorted(set(node) - keys) if keys else ():
            near = get_close_matches(key, keys or (), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(keys or ()))}"
            self.problems.append(f"{f'{at}.' if at else ''}{key}: is not a key of this format{hint}")
        return node

    def text(
        self,
        fields: Mapping[str, Any],
        key: str,
        at: str,
        *,
        default: str | None = None,
        pattern: re.Pattern[str] | None = None,
        form: str = "",
    ) -> str:
        """One line of text under a key. default None: it must be there. form: what the pattern means, for people."""
        value = fields.get(key, default)
        place = f"{at}.{key}" if at else key
        if value is None:
            self.problems.append(f"{place}: is missing")
        elif not isinstance(value, str) or not value.isprintable():
            self.problems.append(f"{place}: is not one line of text")
        elif pattern and key in fields and not pattern.fullmatch(value):
            self.problems.append(f"{place}: {value!r} is not {form}")
        return value if isinstance(value, str) else ""
