"""What is served: which entry a public name means, and whether a request can run on it.

The catalogue is data (`models:`, `loras:` and `embeddings:` in a profile), so serving another checkpoint is ten lines
of YAML and no code. It knows nothing of vendors beyond the word under which each dialect looks names up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from polyreel.entries import Adapter, Native, ServedModel, Task
from polyreel.errors import ConfigurationError, InvalidRequest, NotServedYet, UnknownModel, did_you_mean
from polyreel.request import VideoRequest

#: The dialect in which entries go by their catalogue names, those of every other dialect being understood too.
OWN = "native"

#: A client's own names of fields by the neutral ones, `VideoRequest`'s and "image", as far as they differ.
Words = Mapping[str, str]
NEUTRAL: Words = MappingProxyType({})


class Catalogue:
    """Resolves public names to entries.

    Args:
        models: entries by catalogue name, in the operator's order.
        loras, embeddings: adapters by catalogue name.

    Raises:
        ConfigurationError: nothing is served, one dialect would find two entries under one name, or an entry refers
            to another that does not exist.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        loras: Mapping[str, Adapter] | None = None,
        embeddings: Mapping[str, Adapter] | None = None,
    ) -> None:
        if not models:
            raise ConfigurationError("models: the catalogue is empty; start with --config tiny or list models in YAML.")
        self.models = dict(models)
        self.loras = dict(loras or {})
        self.embeddings = dict(embeddings or {})
        self._by_name = _by_public_name("models", self.models)
        self._lora_by_name = _by_public_name("loras", self.loras)
        self._embedding_by_name = _by_public_name("embeddings", self.embeddings)
        self._check_references()

    def _check_references(self) -> None:
        for entry_name, entry in self.models.items():
            companion = self.models.get(entry.i2v) if entry.i2v else None
            if entry.i2v and (companion is None or "i2v" not in companion.tasks):
                raise ConfigurationError(
                    f"models.{entry_name}.i2v: {entry.i2v!r} is not an entry with the task i2v."
                    f"{did_you_mean(entry.i2v, self.models)}"
                )
        for section, adapters in (("loras", self.loras), ("embeddings", self.embeddings)):
            for name, adapter in adapters.items():
                for model in adapter.models:
                    if model not in self.models:
                        raise ConfigurationError(
                            f"{section}.{name}.models: {model!r} is not served.{did_you_mean(model, self.models)}"
                        )
                if section == "embeddings" and not adapter.token:
                    raise ConfigurationError(f"embeddings.{name}.token: name the word by which prompts call it.")

    def __getitem__(self, entry_name: str) -> ServedModel:
        return self.models[entry_name]

    def find(self, dialect: str, public_name: str) -> str | None:
        """Return the catalogue name that `public_name` means in `dialect`, or None. Case does not matter."""
        return self._by_name.get((dialect, public_name.lower()))

    def resolve(self, dialect: str, public_name: str) -> str:
        """As `find`, for a dialect in which an unknown name is an error.

        Raises:
            UnknownModel: names what is served.
        """
        found = self.find(dialect, public_name)
        if found is None:
            raise UnknownModel(public_name, self.public_names(dialect))
        return found

    def resolve_any(self, name: str) -> str:
        """Return the catalogue name that `name` means: itself, or a public name of whatever dialect.

        Raises:
            UnknownModel: names what is served.
            InvalidRequest: it means several, each in another dialect; names them.
        """
        own = self.find(OWN, name)
        if own is not None:
            return own
        found = {entry: dialect for (dialect, public), entry in self._by_name.items() if public == name.lower()}
        if not found:
            raise UnknownModel(name, self.public_names(OWN))
        if len(found) > 1:
            several = ", ".join(f"{entry} ({dialect})" for entry, dialect in sorted(found.items()))
            raise InvalidRequest(
                f"model: {name[:200]} means several models here: {several}. Use one of these.", "model"
            )
        return next(iter(found))

    def resolve_lora(self, dialect: str, public_name: str, model: str) -> str:
        """Return the catalogue name of a LoRA that fits `model`.

        Raises:
            UnknownModel: there is none of this name for this model; names those that there are.
        """
        return _resolve_adapter("LoRA", self._lora_by_name, self.loras, dialect, public_name, model)

    def resolve_embedding(self, dialect: str, public_name: str, model: str) -> str:
        """As `resolve_lora`, for a textual inversion."""
        return _resolve_adapter("Embedding", self._embedding_by_name, self.embeddings, dialect, public_name, model)

    def admit(self, request: VideoRequest, dialect: str | None = None, words: Words = NEUTRAL) -> VideoRequest:
        """Return the request as it is to run: with pictures, on the entry's companion where it needs one.

        Args:
            dialect: refusals name models as its clients do; None for an operator, who knows the catalogue's names.
            words: refusals name fields so.

        Raises:
            NotServedYet: neither the entry nor its companion can do what was asked; names what and who can.
            InvalidRequest: more pixels or prompts than the entry allows, or more of anything than its companion does.
        """
        asked = request.model
        request = replace(request, model=self._runs(asked, request))
        entry = self.models[request.model]
        if request.model != asked:
            self._check_adapters(request, dialect, words)
            _check_companion(entry, request, words)
        for task, neutral in _wanted(request):
            if task not in entry.tasks:
                able = [name for name in self.models if task in self.models[self._runs(name, request)].tasks]
                if dialect is not None:
                    able = [public for name in able for public in _names(name, self.models[name], dialect)]
                called = request.model if dialect is None else self.called(asked, dialect)
                field = words.get(neutral, neutral)
                raise NotServedYet(
                    f"{field}: {called} cannot do this ({task}). Models that can: {', '.join(able) or 'none here'}.",
                    field,
                )
        entry.limits.check_pixels(request.num_frames, request.delivered_height, request.delivered_width)
        if entry.native:
            _check_prompts(entry.native, request, words)
        return request

    def called(self, model: str, dialect: str) -> str:
        """Return how clients of a dialect call an entry; "this model" where it has no name there, or several."""
        names = _names(model, self.models[model], dialect)
        return names[0] if len(names) == 1 else "this model"

    def _runs(self, model: str, request: VideoRequest) -> str:
        """Return the entry that runs a request for `model`: with pictures, the companion of one that takes none."""
        entry = self.models[model]
        return entry.i2v if request.images and "i2v" not in entry.tasks and entry.i2v else model

    def _check_adapters(self, request: VideoRequest, dialect: str | None, words: Words) -> None:
        """Raise `NotServedYet` for a LoRA or embedding that was made for the entry, but not for its companion."""
        uses = [("loras", self.loras, use.name) for use in request.loras]
        uses += [("embeddings", self.embeddings, name) for name in request.embeddings]
        for neutral, adapters, name in uses:
            adapter = adapters[name]
            if request.model not in adapter.models:
                called, runs = name, request.model
                if dialect is not None:
                    called, runs = next(iter(_names(name, adapter, dialect)), "it"), "the model"
                field = words.get(neutral, neutral)
                raise NotServedYet(
                    f"{field}: {called} was not made for {runs}, which runs requests with a picture here; "
                    "leave one of the two out.",
                    field,
                )

    def public_names(self, dialect: str) -> list[str]:
        """Return every name that `dialect` serves, in catalogue order."""
        return [public for name, entry in self.models.items() for public in _names(name, entry, dialect)]


def _names(name: str, entry: ServedModel | Adapter, dialect: str) -> tuple[str, ...]:
    """Return the names by which clients of a dialect call an entry or adapter."""
    return (*((name,) if dialect == OWN else ()), *entry.names.get(dialect, ()))


def _check_companion(entry: ServedModel, request: VideoRequest, words: Words) -> None:
    """Raise `InvalidRequest` for what the entry that was asked for allows, and its companion does not."""
    limits = entry.limits
    for neutral, value, most in (
        ("num_frames", request.num_frames, limits.num_frames),
        ("height", request.height, limits.side),
        ("width", request.width, limits.side),
        ("num_inference_steps", request.num_inference_steps, limits.num_inference_steps),
    ):
        if value > most:
            field = words.get(neutral, neutral)
            raise InvalidRequest(f"{field} must be at most {most} for a video from a picture, got {value}", field)


def _check_prompts(native: Native, request: VideoRequest, words: Words) -> None:
    """Raise `InvalidRequest` for more prompts than the frames that are made can show."""
    most, field = native.most_prompts(request.num_frames), words.get("prompts", "prompts")
    if len(request.prompts) > most:
        made = native.num_frames_for(request.num_frames)
        more = ", or ask for more frames" if made < native.num_frames[-1] else ""
        raise InvalidRequest(
            f"{field} has {len(request.prompts)} entries; this model makes {made} frames for this video, which show at "
            f"most {most} prompts. Send at most {most}{more}.",
            field,
        )


def _wanted(request: VideoRequest) -> list[tuple[Task, str]]:
    """Return each task that a request needs, with the field that asks for it in the neutral words."""
    frames = {image.frame_index for image in request.images}
    wanted: list[tuple[Task, str]] = []
    if not frames:
        wanted.append(("t2v", "image"))
    elif frames == {0}:
        wanted.append(("i2v", "image"))
    elif frames <= {0, -1, request.num_frames - 1}:
        wanted.append(("first_last", "last_image"))
    else:
        wanted.append(("keyframes", "images"))
    asked: tuple[tuple[object, Task, str], ...] = (
        (len(request.prompts) > 1, "prompt_travel", "prompts"),
        (request.closed_loop, "closed_loop", "closed_loop"),
        (request.upscale, "upscale", "upscale"),
        (request.embeddings, "embeddings", "embeddings"),
        (request.improved_sampling_seed is not None, "improved_sampling", "improved_sampling"),
    )
    return wanted + [(task, field) for value, task, field in asked if value]


def _by_public_name(
    section: str, entries: Mapping[str, ServedModel] | Mapping[str, Adapter]
) -> dict[tuple[str, str], str]:
    """Return catalogue names by (dialect, lower-case public name)."""
    found: dict[tuple[str, str], str] = {}
    for entry_name, entry in entries.items():
        for dialect in (OWN, *entry.names):
            for name in _names(entry_name, entry, dialect):
                taken = found.setdefault((dialect, name.lower()), entry_name)
                if taken != entry_name:
                    raise ConfigurationError(
                        f"{section}.{entry_name}.names.{dialect}: {name!r} already belongs to {taken}; "
                        "take it out of one of the two."
                    )
    return found


def _resolve_adapter(
    kind: str,
    by_name: Mapping[tuple[str, str], str],
    adapters: Mapping[str, Adapter],
    dialect: str,
    public_name: str,
    model: str,
) -> str:
    called = public_name.lower()
    own = by_name.get((dialect, called))
    candidates = [own] if own else []
    if dialect == OWN and not own:
        candidates = [adapter for (_, public), adapter in by_name.items() if public == called]
    found = next((name for name in candidates if model in adapters[name].models), None)
    if found is None:
        fitting = [
            public
            for name, adapter in adapters.items()
            if model in adapter.models
            for public in _names(name, adapter, dialect)
        ]
        raise UnknownModel(public_name, fitting, kind=kind)
    return found
