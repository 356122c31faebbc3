"""In which words a wrong setting is told: the setting, what came, what is allowed, and where it came from.

pydantic's own text quotes whatever came, which may be a key; here a value is shown only where no secret can stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from polyreel.errors import did_you_mean

#: Longest value that is shown, characters.
_LONGEST = 100

#: Where a section has more names than this, the nearest alone is told.
_FEW = 12

#: What is right, by pydantic's kind of error and with its context. Others are told in pydantic's words.
#: Source: pydantic documentation, "Validation Errors".
_RIGHT = {
    "int_parsing": "write a whole number",
    "int_from_float": "write a whole number",
    "int_type": "write a whole number",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "finite_number": "write a finite number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "string_type": "write a text",
    "path_type": "write a path",
    "tuple_type": "write a list",
    "dict_type": "write a mapping, NAME: VALUE",
    "model_type": "write a mapping, NAME: VALUE",
    "literal_error": "use {expected}",
    "missing": "it is missing: write one, as it has no default",
    "greater_than_equal": "write {ge} or more",
    "greater_than": "write more than {gt}",
    "less_than_equal": "write {le} or less",
    "less_than": "write less than {lt}",
}


def explain(err: ValidationError, origin: Mapping[str, str], prefix: str, model: type[BaseModel]) -> str:
    """Return one line per problem: the setting, what is right, what came, and where from.

    Args:
        origin: top-level field to the place that its value came from; nothing is said of others.
        prefix: of the settings' names, "" for the top.
        model: what refused.
    """
    return "\n".join(_line(problem, origin, prefix, model) for problem in err.errors(include_url=False))


def _line(problem: Any, origin: Mapping[str, str], prefix: str, model: type[BaseModel]) -> str:  # Any: ErrorDetails
    loc = problem["loc"]
    where = ".".join([*([prefix] if prefix else []), *map(str, loc)])
    place = origin.get(str(loc[0]) if loc else "", "")
    source = f" (from {place})" if place else ""
    if problem["type"] == "extra_forbidden":
        names = _names_at(model, loc[:-1])
        hint = did_you_mean(str(loc[-1]), names)
        if not hint and len(names) <= _FEW:
            hint = f" There are: {', '.join(names) or 'none'}."
        return f"{where}: there is no such setting.{hint}{source}"
    limits = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in problem.get("ctx", {}).items()
    }
    right = _RIGHT.get(problem["type"], "{msg}").format(**limits, msg=problem["msg"])
    right = right.removeprefix("Value error, ")
    return f"{where}: {right}{_came(problem, right, model)}{source}"


def _came(problem: Any, right: str, model: type[BaseModel]) -> str:
    """Return what came, where it can be shown and has not been already."""
    if problem["type"] == "missing":
        return ""
    if is_secret(model, problem["loc"]):
        return "; what came is a secret and not shown"
    value = problem["input"]
    if not isinstance(value, str | int | float | bool | None) or len(str(value)) > _LONGEST or repr(value) in right:
        return ""
    return f", got {'nothing' if value is None else repr(value)}"


def is_secret(model: type[BaseModel], loc: tuple[int | str, ...]) -> bool:
    """Return whether what stands at `loc` may be a secret: a field for one, or nothing that is known."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:
            return False  # an entry of a mapping or a list, whose field was looked at
        if "SecretStr" in str(field.annotation):
            return True
        model = _model_of(field.annotation) or model
    return False


def _names_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the field names that are legal at `loc`, following nested models and mappings of models."""
    parts = iter(loc)
    for part in parts:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        model = _model_of(field.annotation) or model
        if getattr(field.annotation, "__origin__", None) is dict:
            next(parts, None)  # a key of the mapping, which may be called like a field
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:  # Any: whatever a field is annotated with
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
