"""The section `dialects: universal:` of a profile, and the one model that it names."""

from __future__ import annotations

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from polyreel.catalogue import Catalogue
from polyreel.errors import ConfigurationError


class UniversalSettings(BaseModel):
    """The endpoint has one model and no name for it in its requests.

    Args:
        endpoint_model: which of this dialect's public names answers; None takes the catalogue's first.
        wait_s: longest time that a request is held, seconds; Node's fetch gives up after 300.
        cancel_when_client_leaves: end a job when its client hangs up and nobody else waits for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    endpoint_model: str | None = None
    wait_s: float = 290.0
    cancel_when_client_leaves: bool = True


def settings_of(request: Request) -> UniversalSettings:
    """Return the settings of the app that serves `request`."""
    found: UniversalSettings = request.app.state.dialect_settings["universal"]
    return found


def check(catalogue: Catalogue, settings: UniversalSettings) -> None:
    """Stop the start when the endpoint is to run a model that is not served.

    Raises:
        ConfigurationError: names the setting and what is served.
    """
    if catalogue.public_names("universal"):
        endpoint_model(catalogue, settings)


def endpoint_model(catalogue: Catalogue, settings: UniversalSettings) -> str:
    """Return the catalogue name of the model of `POST /`.

    Raises:
        ConfigurationError: the setting names no model of this dialect.
    """
    served = catalogue.public_names("universal")
    name = settings.endpoint_model or next(iter(served), "")
    found = catalogue.find("universal", name)
    if found is None:
        raise ConfigurationError(
            f"dialects.universal.endpoint_model: {name!r} is not a model of this endpoint. "
            f"The catalogue's universal names: {', '.join(served) or 'none'}."
        )
    return found
