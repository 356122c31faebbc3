"""Finds the implementations of an extension point: every module of a package that publishes one named object.

Adding a dialect, family, format or storage is adding one file, because nothing lists them by hand. Outside
packages join through an entry point group with the package's name (`polyreel.formats`, `server.dialects`, …).
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from polyreel.errors import ConfigurationError


def discover(package: str, attribute: str) -> dict[str, Any]:
    """Import each public module of `package` once, in name order, and collect its `attribute`.

    Args:
        package: dotted name of the package, e.g. "polyreel.formats".
        attribute: what such a module publishes, e.g. "FORMAT"; modules without it are not implementations.

    Returns:
        The published objects by their `.name`, in module order, outside packages last.

    Raises:
        ConfigurationError: a module does not import (names the file), or two publish the same name.
    """
    found: dict[str, Any] = {}
    root = importlib.import_module(package)
    for info in pkgutil.iter_modules(root.__path__):
        if not info.name.startswith("_"):
            _publish(found, _import(f"{package}.{info.name}"), attribute)
    for point in entry_points(group=package):
        _publish(found, _import(point.module), attribute)
    return found


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as err:
        raise ConfigurationError(f"{module.replace('.', '/')}.py does not import: {err}") from err


def _publish(found: dict[str, Any], module: Any, attribute: str) -> None:
    implementation = getattr(module, attribute, None)
    if implementation is None:
        return
    if implementation.name in found:
        raise ConfigurationError(f"{module.__name__} publishes {attribute} {implementation.name!r}, which exists.")
    found[implementation.name] = implementation
