"""One request as a call of each dialect, to copy: as curl, and as Python that needs nothing installed.

A dialect publishes `snippet`: it writes a request in its vendor's words and reads them back with its own `from_wire`.
What it read stands beside what was asked (`WireCall.means`), so a snippet that would make another video is found out
here, and told with the field instead of shown. Texts are made here alone; vendor words are not known here.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from polyreel.catalogue import Catalogue
from polyreel.errors import InvalidRequest, PolyreelError, UnknownModel, UnknownRoute
from polyreel.request import AdapterUse, OutputSpec, Upscale, VideoRequest

#: Name of the blank for the API key.
KEY = "key"

#: What is allowed to differ, because it changes no frame: how fast they play, and the kinds of files.
_OF_FILES = ("fps", "outputs")


@dataclass(frozen=True, slots=True)
class Blank:
    """What whoever copies a call fills in: the API key, or a picture's file in base64.

    Args:
        name: `KEY`, or the name of a file.
        before: text that stands in front of it.
    """

    name: str
    before: str = ""

    def __str__(self) -> str:
        return f"{self.before}{{{self.name}}}"


class Unsayable(PolyreelError):
    """Raised by a dialect that has no words for a request; the message names the field and why."""


@dataclass(frozen=True)
class Wish:
    """A request that is to be said in a dialect's words.

    Args:
        request: complete; its images have no keys, since nothing is stored.
        pictures: of each of its images, in their order: the link that was sent, or the file that a call names instead.
        is_seeded: the seed was chosen, and not drawn: only then a call names it.
        webhook, keep_s: of the submit, null for none; our own API alone has both.
    """

    request: VideoRequest
    pictures: tuple[str | Blank, ...] = ()
    is_seeded: bool = True
    webhook: str | None = None
    keep_s: float | None = None

    @property
    def seed(self) -> int | None:
        """The seed that a call is to name, None to let the server draw one."""
        return self.request.seed if self.is_seeded else None

    @property
    def first_frame(self) -> str | Blank | None:
        """The picture of a request that has one, for its first frame; None for none, and for more or others."""
        images = self.request.images
        return self.pictures[0] if [(one.frame_index, one.strength) for one in images] == [(0, 1.0)] else None

    def with_first_frame(self, means: VideoRequest) -> VideoRequest:
        """Return what was read back with the picture that the call carries beside it."""
        return means if self.first_frame is None else replace(means, images=self.request.images)

    def name_in(self, catalogue: Catalogue, dialect: str) -> str:
        """Return the model's first public name in a dialect.

        Raises:
            Unsayable: it has none.
        """
        model = self.request.model
        names = catalogue[model].names.get(dialect)
        if not names:
            raise Unsayable(f"model: {model} has no name in this API (setting models.{model}.names.{dialect})")
        return names[0]


@dataclass(frozen=True)
class WireCall:
    """A submit in a vendor's words.

    Args:
        path: of the submit.
        body: JSON object; a `Blank` stands for a whole text. Any: JSON in the vendor's words.
        means: what the dialect's own `from_wire` makes of it.
        headers: beside Content-Type.
        saves_to: name for the file that the answer is, "" where it is a text.
    """

    path: str
    body: Mapping[str, Any]
    means: VideoRequest
    headers: Mapping[str, str | Blank] = field(default_factory=lambda: {"Authorization": Blank(KEY, "Bearer ")})
    saves_to: str = ""
    method: str = "POST"


#: Says a wish in a dialect's words; the last argument is the dialect's own settings.
Say = Callable[[Wish, Catalogue, Any], WireCall]


@dataclass(frozen=True)
class Snippet:
    """A call to copy, or why there is none.

    Args:
        reason: "" where there is a call; else the other texts are empty.
        differences: how the files of this call differ from those that were asked for.
    """

    call: WireCall | None
    reason: str
    differences: tuple[str, ...] = ()


def given(**values: object) -> dict[str, Any]:
    """Return the values that are not null, whole numbers as such: 16 and not 16.0. Any: JSON."""
    return {name: _plain(value) for name, value in values.items() if value is not None}


def filled(value: Any) -> Any:
    """Return a body with a text for each blank, as the wire models read it. Any: JSON with blanks, and without."""
    if isinstance(value, Mapping):
        return {name: filled(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [filled(one) for one in value]
    return str(value) if isinstance(value, Blank) else value


def snippet_of(say: Say, title: str, wish: Wish, catalogue: Catalogue, settings: Any) -> Snippet:
    """Return how a dialect says a wish, or which field it has no words for. Any: the dialect's own settings.

    Args:
        say: the dialect's `snippet`.
        title: its name, for the reason.
    """
    try:
        call = say(wish, catalogue, settings)
    except (Unsayable, InvalidRequest, UnknownModel, UnknownRoute) as err:  # its own words name the field and its range
        return Snippet(None, err.message)
    asked = wish.request
    means = call.means if wish.is_seeded else replace(call.means, seed=asked.seed)
    wrong = [one.name for one in fields(VideoRequest) if getattr(means, one.name) != getattr(asked, one.name)]
    for name in wrong:
        if name not in _OF_FILES:
            has, would = _told(getattr(asked, name)), _told(getattr(means, name))
            return Snippet(None, f"{name}: {title} cannot say {has}" + (f"; it would be {would}" if would else ""))
    differences = [f"{name}: {_told(getattr(means, name))} instead of {_told(getattr(asked, name))}" for name in wrong]
    differences += [f"{name}: left out" for name in _unread(wish, call)]
    return Snippet(call, "", tuple(differences))


def _unread(wish: Wish, call: WireCall) -> Iterator[str]:
    """Give what of a submit is no part of the request and stands in no field of the call."""
    for name in ("webhook", "keep_s"):
        if getattr(wish, name) is not None and name not in call.body:
            yield name


def _told(value: object) -> str:
    """Return a field's value in a few words, "" for none."""
    if isinstance(value, tuple):
        return ", ".join(_told(one) for one in value) if len(value) < 4 else f"{len(value)} of them"
    if isinstance(value, OutputSpec):
        return f"{value.format} at {_plain(value.fps)} fps" + (f" ({value.quality})" if value.quality != "good" else "")
    if isinstance(value, AdapterUse):
        return value.name
    if isinstance(value, Upscale):
        return f"{value.width}x{value.height}"
    if value is None or value == "":
        return ""
    if isinstance(value, str | int | float):
        return json.dumps(_plain(value), ensure_ascii=False)[:80]
    return {"PromptSpan": "a prompt with frames", "ImageCondition": "a picture"}.get(type(value).__name__, "this")


def curl_of(call: WireCall, base_url: str) -> str:
    """Return a line for any POSIX shell in which `$KEY` holds the API key.

    A body with pictures goes through a pipe: a single argument of a command may not be longer than 128 KiB on Linux.
    """
    text, tokens = _text_of(call.body)
    body = _single_quoted(text, {token: _shell_of(blank) for token, blank in tokens.items()})
    has_files = any(blank.name != KEY for blank in tokens.values())
    parts = [
        f"printf '%s' {body} |\n  curl -sS" if has_files else "curl -sS",
        f"-X {call.method} {shlex.quote(base_url + call.path)}",
        *(f"-H {_header(name, value)}" for name, value in _headers(call).items()),
        "--data-binary @-" if has_files else f"-d {body}",
        *([f"-o {shlex.quote(call.saves_to)}"] if call.saves_to else []),
    ]
    return " \\\n  ".join(parts)


def python_of(call: WireCall, base_url: str) -> str:
    """Return a program of the standard library alone; it reads the key from the environment's `KEY`."""
    _, tokens = _text_of(call.body)
    imports = ["json", "os", "urllib.request"]
    if any(blank.name != KEY for blank in tokens.values()):
        imports.insert(0, "base64")
    read = f"open({call.saves_to!r}, 'wb').write(answer.read())" if call.saves_to else "print(answer.read().decode())"
    return "\n".join(
        [
            *(f"import {name}" for name in imports),
            "",
            'KEY = os.environ["KEY"]',
            "",
            f"body = {_python(call.body)}",
            "request = urllib.request.Request(",
            f"    {base_url + call.path!r},",
            "    data=json.dumps(body).encode(),",
            f"    headers={_python(_headers(call), 1)},",
            f"    method={call.method!r},",
            ")",
            "with urllib.request.urlopen(request) as answer:",
            f"    {read}",
            "",
        ]
    )


def _headers(call: WireCall) -> dict[str, str | Blank]:
    return {**call.headers, "Content-Type": "application/json"}


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text_of(body: Mapping[str, Any]) -> tuple[str, dict[str, Blank]]:
    """Return a body as JSON, and the blanks by the words that stand for them there and nowhere else."""
    mark = next(mark for mark in map("__blank{}_".format, itertools.count()) if mark not in json.dumps(filled(body)))
    tokens: dict[str, Blank] = {}

    def token(value: object) -> str:
        assert isinstance(value, Blank)  # noqa: S101 bodies hold JSON and blanks
        name = f"{mark}{len(tokens)}__"
        tokens[name] = value
        return value.before + name

    return json.dumps(body, ensure_ascii=False, indent=2, default=token), tokens


def _shell_of(blank: Blank) -> str:
    return '"$KEY"' if blank.name == KEY else f"\"$(base64 < {shlex.quote(blank.name)} | tr -d '\\n')\""


def _single_quoted(text: str, tokens: Mapping[str, str]) -> str:
    """Quote for a POSIX shell, leaving what stands for the tokens outside of the single quotes."""
    quoted = "'" + text.replace("'", "'\\''") + "'"
    for token, expression in tokens.items():
        quoted = quoted.replace(token, f"'{expression}'")
    return quoted


def _header(name: str, value: str | Blank) -> str:
    if isinstance(value, Blank):
        return f'"{name}: {value.before}$KEY"'
    return shlex.quote(f"{name}: {value}")


def _python(value: object, depth: int = 0) -> str:
    """Return a Python expression."""
    if isinstance(value, Blank):
        read = "KEY" if value.name == KEY else f"base64.b64encode(open({value.name!r}, 'rb').read()).decode()"
        return f"{value.before!r} + {read}" if value.before else read
    if not isinstance(value, Mapping | list | tuple) or not value:
        return repr(value)
    if isinstance(value, Mapping):
        items, (first, last) = [f"{name!r}: {_python(one, depth + 1)}" for name, one in value.items()], "{}"
    else:
        items, (first, last) = [_python(one, depth + 1) for one in value], "[]"
    inner, outer = "    " * (depth + 1), "    " * depth
    return first + "\n" + "".join(f"{inner}{item},\n" for item in items) + outer + last
