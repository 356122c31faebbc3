"""Where settings come from: command line > environment > secret files > YAML profile > default.

A misspelt key in YAML or in the environment stops the start and suggests the right one. Nothing reads the environment
at import. What the settings are is `polyreel.settings`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsError

from polyreel.errors import ConfigurationError, did_you_mean
from polyreel.settings import Settings
from polyreel.wrong_settings import explain


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each field the place that its value came from (for `polyreel config show --origin`)."""

    settings: Settings
    origin: dict[str, str]


def load_settings(config: str | None = None, **command_line: object) -> Loaded:
    """Build the settings from every source.

    Args:
        config: path of a YAML file, or the name of a shipped profile ("tiny", "gpu", "team"); default "tiny".
            The environment's `POLYREEL_CONFIG` stands in when it is None.
        command_line: values given as flags; None means not given.

    Raises:
        ConfigurationError: names the setting, what came and what would be right; never quotes a secret.
    """
    _refuse_unknown_environment(os.environ)
    profile = config or os.environ.get("POLYREEL_CONFIG") or "tiny"
    secrets_dir = os.environ.get("POLYREEL_SECRETS_DIR") or "/run/secrets"
    given = {name: value for name, value in command_line.items() if value is not None}
    layers: list[tuple[str, dict[str, Any]]] = [(f"profile {profile}", read_profile(profile))]
    if Path(secrets_dir).is_dir():
        place = f"secret files in {secrets_dir}"
        layers.append((place, _read(place, SecretsSettingsSource(Settings, secrets_dir=secrets_dir))))
    environment = EnvSettingsSource(Settings)
    environment.env_vars = {
        name: value for name, value in environment.env_vars.items() if not _is_of_a_kubernetes_service(name, value)
    }
    layers.append(("environment", _read("environment", environment)))
    layers.append(("command line", given))
    merged: dict[str, Any] = {}
    origin = dict.fromkeys(Settings.model_fields, "default")
    for place, values in layers:
        for name, value in values.items():
            field = "redis_url" if name == "REDIS_URL" else str(name)  # YAML keys may be numbers: no, 8000
            merged[field] = _merge(merged.get(field), value)
            origin[field] = place
    try:
        settings = Settings(**merged)
    except ValidationError as err:
        raise ConfigurationError(explain(err, origin, "", Settings)) from None
    return Loaded(settings, origin)


def _read(place: str, source: PydanticBaseSettingsSource) -> dict[str, Any]:
    try:
        return source()
    except SettingsError as err:  # its text names the field and quotes no value, which may hold a key
        found = re.search(r'field "(\w+)"', str(err))
        if found is None:
            raise ConfigurationError(f"{place}: {err}") from None
        raise ConfigurationError(
            f'{found[1]}: write JSON, as in POLYREEL_DIALECTS=\'{{"universal": {{"endpoint_model": "ltx"}}}}\', or '
            "each part in a variable of its own, as POLYREEL_DIALECTS__UNIVERSAL__ENDPOINT_MODEL=ltx; what came may "
            f"hold a secret and is not shown (from {place})"
        ) from None
    except Exception as err:
        raise ConfigurationError(f"{place}: {err}") from None


def read_profile(name_or_path: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a profile's values, with those of the profile that its `extends:` names underneath.

    Raises:
        ConfigurationError: no such profile or file, not YAML, not a mapping, or it extends itself.
    """
    if name_or_path in extended_by:
        raise ConfigurationError(
            f"--config {extended_by[0]}: the profile {name_or_path} extends itself. Take `extends:` out of it, or name "
            "another profile there."
        )
    shipped = files("configs")
    names = sorted(entry.name.removesuffix(".yaml") for entry in shipped.iterdir() if entry.name.endswith(".yaml"))
    if name_or_path in names:
        text = (shipped / f"{name_or_path}.yaml").read_text("utf-8")
    else:
        try:
            text = Path(name_or_path).read_text("utf-8")
        except OSError as err:
            raise ConfigurationError(
                f"--config {name_or_path}: {err.strerror}.{did_you_mean(name_or_path, names)} "
                f"Give a YAML file or one of the shipped profiles: {', '.join(names)}."
            ) from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"--config {name_or_path}: not valid YAML: the file is not UTF-8 text.") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as err:
        # Not the error's own text: it quotes the line, and the line may hold a key.
        mark = getattr(err, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigurationError(
            f"--config {name_or_path}: not valid YAML{where}: {getattr(err, 'problem', None) or 'unreadable'}. Mend it "
            f"there or just before; `polyreel config check {name_or_path}` says when it is right."
        ) from None
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"--config {name_or_path}: the file must be a mapping of settings, such as port: 8000."
        )
    parent = values.pop("extends", None)
    return _merge(read_profile(str(parent), (*extended_by, name_or_path)), values) if parent else values


def _merge(below: Any, above: Any) -> Any:
    """Lay `above` over `below`, mapping by mapping; anything that is not a mapping is replaced."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {key: _merge(below.get(key), above[key]) if key in above else below[key] for key in {**below, **above}}


#: Names that configure the start itself and are no field of `Settings`.
_START_VARIABLES = {"POLYREEL_CONFIG", "POLYREEL_SECRETS_DIR", "POLYREEL_URL", "POLYREEL_KEY"}


#: In every pod, Kubernetes sets POLYREEL_SERVICE_HOST, POLYREEL_PORT=tcp://10.0.0.1:8000, POLYREEL_PORT_8000_TCP_ADDR
#: and more for a Service called polyreel, and POLYREEL_REDIS_SERVICE_HOST and so on for one called polyreel-redis.
_SERVICE_VARIABLE = re.compile(r"POLYREEL_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_PORT = re.compile(r"POLYREEL_(\w+_)?PORT=(tcp|udp|sctp)://.*", re.DOTALL)


def _is_of_a_kubernetes_service(name: str, value: str | None) -> bool:
    upper = name.upper()
    if "__" in upper:
        return False  # a nested setting of ours
    return bool(_SERVICE_VARIABLE.fullmatch(upper) or _SERVICE_PORT.fullmatch(f"{upper}={value}"))


def _refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    """A misspelt variable would be ignored silently by pydantic-settings; stop the start instead."""
    known = {f"POLYREEL_{name.upper()}" for name in Settings.model_fields if name != "redis_url"} | _START_VARIABLES
    for name, value in sorted(environment.items()):
        if _is_of_a_kubernetes_service(name, value):
            continue
        upper = name.upper()  # pydantic-settings reads either case
        if upper.startswith("POLYREEL_") and upper.split("__")[0] not in known:
            near = " Did you mean REDIS_URL?" if upper == "POLYREEL_REDIS_URL" else did_you_mean(upper, known)
            raise ConfigurationError(f"{name}: there is no such setting.{near} `polyreel config show` lists them all.")
