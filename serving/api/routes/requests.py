"""What the bodies of all routes have in common: reading JSON into a request, names of models, places of mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec

from serving.api.errors import Problem, invalid
from serving.tasks.text import InputType, Truncate

_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_MAX_SHOWN = 100  # characters of a name in a message

Request = TypeVar("Request")

ModelName = Annotated[
    str, msgspec.Meta(description="A name that /v1/models lists, or another that this server was given.")
]
Truncation = Annotated[
    Truncate | None,
    msgspec.Meta(
        description="What becomes of a text that is too long. NONE (the default): the request is refused. "
        "END: its end is cut off. START: its beginning."
    ),
]


def decode(decoder: msgspec.json.Decoder[Request], body: bytes) -> Request:
    """The request, or a Problem that names the place in the body."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        raise invalid(_PLACE.sub("", str(error)), *(_loc(place[1]) if place else ())) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON in UTF-8: {error}", kind="json_invalid") from error


def check_texts(texts: list[str], max_inputs: int, field: str) -> None:
    """Raise Problem for none, too many, or an empty one."""
    if not texts:
        raise invalid(f"{field} is empty; send a text or a list of texts", field)
    if len(texts) > max_inputs:
        raise invalid(f"{field} holds {len(texts)} texts, at most {max_inputs} are taken; send several requests", field)
    for index, text in enumerate(texts):
        if not text:
            raise invalid(f"{field} {index} is empty; send some text", field, index)


def check_model(name: str, names: Sequence[str], endings: Mapping[str, InputType] | None = None) -> InputType | None:
    """What a name's ending says of the texts. Raises Problem (404) for another model."""
    if name in names:
        return None
    for ending, input_type in (endings or {}).items():
        if name.removesuffix(ending) in names:
            return input_type
    shown = repr(name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…")
    message = f"The model {shown} does not exist here; use {', '.join(names)}"
    raise Problem(404, "model_not_found", message, detail={"loc": ["body", "model"], "msg": message})


def accepted_names(names: Sequence[str], endings: Iterable[str]) -> tuple[str, ...]:
    """Every name that check_model takes."""
    return tuple(name + ending for ending in ("", *endings) for name in names)


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _loc(path: str) -> list[str | int]:
    """`input[3]` -> ["input", 3]."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"[.\[\]]+", path) if part and part != "..."]
