"""What an operator reads first: the address, the key (once), and one curl line per dialect that works as it stands."""

from __future__ import annotations

import json
import shlex

from polyreel.keys import is_loopback
from polyreel.settings import Settings
from server.dialects import Example, dialects
from server.first_key import key_file

#: Stands in the curl lines when the key is the operator's own, which is never printed.
_YOUR_KEY = "$KEY"


def greeting(settings: Settings, port: int, new_key: str | None) -> str:
    """Return the first lines of output.

    Args:
        port: the one really listened on.
        new_key: text of a key that was made just now; None when keys were configured or made before, or a file has it.
    """
    file = key_file(settings)
    has_file = not new_key and not settings.api_keys and is_loopback(settings.host) and file.exists()
    base = settings.public_url or f"http://{_reachable(settings.host)}:{port}"
    lines = [f"Polyreel listens on {settings.host}, port {port}: {base}"]
    if new_key:
        lines.append(f"API key (shown this once): {new_key}")
    elif settings.api_keys:
        lines.append(f"API keys: those of {', '.join(settings.api_keys)}, as configured")
    elif not is_loopback(settings.host):
        lines.append("API keys: those that `polyreel keys list` shows")
    elif has_file:
        lines.append(f"API key: in the file {file}, which only this user can read")
    else:
        lines.append(
            "API key: the one shown at the first start "
            f"(lost it? delete {settings.state_dir / 'local-key.json'} and start again, or set POLYREEL_API_KEYS)"
        )
    lines.append(f"Models: {', '.join(settings.models)} (loaded when first used; {base}/ready says when jobs can run)")
    catalogue = settings.catalogue
    if not new_key:
        whose = f'"$(cat {shlex.quote(str(file))})"' if has_file else "<your key>"
        lines += ["", f"export KEY={whose}   # for the lines below"]
    for name, dialect in sorted(dialects().items()):
        if dialect.example is None or not catalogue.public_names(name):
            continue  # it takes no jobs, or none of these models
        lines += ["", f"# {name}: {dialect.example.title}", curl_line(dialect.example, base, new_key or _YOUR_KEY)]
    return "\n".join(lines) + "\n"


def _reachable(host: str) -> str:
    """Return an address that a client on this machine can call: "every address" is none."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 compared, not listened on
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def curl_line(example: Example, base_url: str, key: str) -> str:
    """Return a command that sends `example`; a `$NAME` key stays open for the shell."""
    body = json.dumps(example.body, ensure_ascii=False)
    parts = [f"curl -sS -X {example.method} {shlex.quote(base_url + example.path)}"]
    parts += [f"-H {_quoted(f'{name}: {value}', key)}" for name, value in example.headers.items()]
    parts.append(f"-d {_quoted(body, key)}")
    if example.saves_to:
        parts.append(f"-o {example.saves_to}")
    return " ".join(parts)


def _quoted(text: str, key: str) -> str:
    """Quote for the shell, leaving a variable that stands for the key outside the single quotes."""
    if not key.startswith("$"):
        return shlex.quote(text.replace("{key}", key))
    return "".join(f'"{key}"' if part == "{key}" else shlex.quote(part) for part in _split(text) if part)


def _split(text: str) -> list[str]:
    before, found, after = text.partition("{key}")
    return [before, found, after]
