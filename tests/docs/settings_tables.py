"""The tables of `docs/settings.md`: every setting's default, values and meaning, from the models that check them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr

from polyreel.entries import Adapter, Cost, Defaults, Geometry, Limits, Native, Part, Placement, ServedModel
from polyreel.settings import Settings
from server.dialects import dialects
from tests.docs.docstrings import arguments

#: The order in which the page shows them; a setting that stands nowhere here is shown at the end, under "Other".
GROUPS: dict[str, tuple[str, ...]] = {
    "The API": ("host", "port", "public_url", "cors_origins", "trusted_proxies", "max_body_bytes", "web_page"),
    "Keys and secrets": (
        "api_keys", "admins", "key_pepper", "link_secret", "old_link_secrets", "webhook_secrets",
    ),
    "Queue and jobs": (
        "redis_url", "max_queued", "max_queued_per_key", "job_timeout_s", "unavailable_after_s", "lease_s",
        "scheduling", "drain_s", "resume_after_s", "resume_every", "content_policy",
    ),
    "Results": (
        "state_dir", "storage", "s3", "spool_s", "min_free_mb", "disk_quota_gb", "retention_s", "file_metadata",
    ),
    "Models and workers": (
        "models", "loras", "embeddings", "dialects", "device", "gpus", "workers", "threads", "resident_models",
        "resident_loras_mb", "previews",
    ),
    "Calls to the outside": ("webhook_allow", "outbound_http"),
    "Logs": ("log_level", "log_prompts"),
}  # fmt: skip

#: Models below `models:`, `loras:` and `embeddings:`, by the path of their names; NAME is the operator's own.
ENTRIES: dict[str, type[BaseModel]] = {
    "models.NAME": ServedModel,
    "models.NAME.limits": Limits,
    "models.NAME.defaults": Defaults,
    "models.NAME.placement": Placement,
    "models.NAME.native": Native,
    "models.NAME.parts.ROLE": Part,
    "models.NAME.geometry": Geometry,
    "models.NAME.cost": Cost,
    "loras.NAME, embeddings.NAME": Adapter,
}

#: What the default is where code works it out.
_COMPUTED = {"state_dir": "`$XDG_STATE_HOME/polyreel`, else `~/.local/state/polyreel`"}

#: What comes with Polyreel; the default profile is called tiny.
_PROFILES = Path(__file__).parents[2] / "configs"


def settings_tables() -> str:
    """Return a table for every group of settings; the settings of a section stand behind it."""
    placed = {name for names in GROUPS.values() for name in names}
    other = tuple(name for name in Settings.model_fields if name not in placed)
    parts = []
    for title, names in {**GROUPS, "Other": other}.items():
        if names:
            head = ["| setting | variable | default | values | meaning |", "|---|---|---|---|---|"]
            parts.append("\n".join([f"### {title}", "", *head, *_setting_rows(names)]))
    return "\n\n".join(parts)


def _setting_rows(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        section = Settings.model_fields[name].annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            for inner in section.model_fields:
                yield _row(f"`{name}.{inner}`", f"`POLYREEL_{name}__{inner}`".upper(), *_cells(section, inner))
        else:
            variable = "REDIS_URL" if name == "redis_url" else f"POLYREEL_{name}".upper()
            default, *others = _cells(Settings, name)
            yield _row(f"`{name}`", f"`{variable}`", default + _profiles_say(name), *others)


def entries_tables() -> str:
    """Return a table for each kind of catalogue entry."""
    parts = []
    for path, model in ENTRIES.items():
        title = ", ".join(f"`{one}`" for one in path.split(", "))
        rows = [_row(f"`{name}`", *_cells(model, name)) for name in model.model_fields]
        head = ["| field | default | values | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"### {title}", "", *head, *rows]))
    return "\n\n".join(parts)


def dialects_table() -> str:
    """Return one table of every dialect's own settings."""
    lines = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for name, dialect in sorted(dialects().items()):
        model = dialect.settings
        lines += [_row(f"`dialects.{name}.{field}`", *_cells(model, field)) for field in model.model_fields]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(model: type[BaseModel], name: str) -> tuple[str, str, str]:
    """Return a field's default, what it takes, and what it means."""
    meaning = arguments(model).get(name, "")
    assert meaning, f"{model.__name__}.{name}: say under Args of its docstring what it means"
    return _default(model, name), _values(_schema(model)[name]), meaning


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of each field. Any: JSON."""
    return dict(model.model_json_schema()["properties"])


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if model is Settings and name in _COMPUTED:
        return _COMPUTED[name]
    if field.is_required():
        return "needed"
    default = field.get_default(call_default_factory=True, validated_data={})
    return "below" if isinstance(default, BaseModel) else f"`{_yaml(default)}`"


def _profiles_say(name: str) -> str:
    """Return what the profiles that come with Polyreel say of a setting, where that is a plain value."""
    said = []
    for profile, values in _profiles().items():
        value = values.get(name)
        default = Settings.model_fields[name].get_default(call_default_factory=True, validated_data={})
        if value not in (None, default) and not isinstance(value, dict | list):
            said.append(f"{profile}: `{_yaml(value)}`")
    return f" ({', '.join(said)})" if said else ""


@cache
def _profiles() -> dict[str, dict[str, Any]]:
    """Return what each profile that comes with Polyreel says. Any: YAML."""
    return {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in sorted(_PROFILES.glob("*.yaml"))}


def _yaml(value: Any) -> str:
    """Return a default as a profile would have it. Any: whatever a field's default may be."""
    if isinstance(value, SecretStr):
        raise AssertionError("a secret with a default is none")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    plain = list(value) if isinstance(value, tuple) else value
    return json.dumps(str(plain) if isinstance(plain, Path) else plain)


def _values(schema: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema takes. Any: JSON.

    Raises:
        AssertionError: a kind of schema that nobody has put into words here.
    """
    if "$ref" in schema:
        return "section"
    if "anyOf" in schema:
        kinds = [_values(one) for one in schema["anyOf"]]
        return ("; or " if any(", " in kind for kind in kinds) else " or ").join(kinds)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _range(schema)
    if "prefixItems" in schema:
        [kind] = {_values(one) for one in schema["prefixItems"]}  # all alike
        return f"list of {len(schema['prefixItems'])}: {kind}"
    if kind == "array":
        items = schema.get("items", {})
        return f"list of {_values(items)}"
    if kind == "object":
        inside = schema.get("additionalProperties", {})
        return f"mapping of {_values(inside)}" if isinstance(inside, Mapping) and "type" in inside else "mapping"
    if kind == "string":
        return {"password": "secret text", "path": "folder"}.get(str(schema.get("format")), "text")
    words = {"boolean": "`true` or `false`", "null": "`null`", None: "anything"}
    assert kind in words, f"say in words what {schema} takes"
    return words[kind]


def _range(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f", {_plain(least)} to {_plain(most)}"
    words = {"minimum": "{} or more", "exclusiveMinimum": "over {}", "maximum": "{} at most",
             "exclusiveMaximum": "under {}"}  # fmt: skip
    said = [text.format(_plain(schema[bound])) for bound, text in words.items() if bound in schema]
    if "multipleOf" in schema:
        said.append(f"a multiple of {_plain(schema['multipleOf'])}")
    return f", {', '.join(said)}" if said else ""


def _plain(number: float) -> str:
    return f"{number:g}" if number < 1e6 else f"{number:,}"
