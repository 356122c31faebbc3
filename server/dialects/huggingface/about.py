"""The routes that tell of a model: what it does, whether it is loaded, and who offers it.

Sources: huggingface_hub, `get_endpoint_info` and `health_check` (below the URL that the client was given),
`get_model_status` (0.26.5 and older), and the Hub's `GET /api/models/{model}`, which the provider clients ask first.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from polyreel.entries import ServedModel
from polyreel.errors import UnknownRoute
from server.credentials import bearer
from server.dialects.huggingface.errors import ErrorBody
from server.dialects.huggingface.routes import IMAGE_TO_VIDEO, TEXT_TO_VIDEO
from server.live_workers import listed
from server.openapi import documents
from server.services import services

router = APIRouter()


class ModelInfo(BaseModel):
    """What `get_endpoint_info` returns; its keys are the server's own."""

    model_id: str
    pipeline_tag: str
    family: str


class ModelStatus(BaseModel):
    """What `get_model_status` reads.

    Args:
        state: "TooBig" is a model that no live worker can run.
        compute_type: "cpu" or "gpu".
    """

    loaded: bool
    state: Literal["Loaded", "Loadable", "TooBig"]
    compute_type: str
    framework: str = "diffusers"


class ProviderMapping(BaseModel):
    """How one provider calls a model, in the Hub's words."""

    status: str = "live"
    providerId: str
    task: str


class HubModel(BaseModel):
    """As much of the Hub's record of a model as the provider clients read."""

    id: str
    pipeline_tag: str
    inferenceProviderMapping: dict[str, ProviderMapping]


@router.get("/models/{rest:path}", **documents(answer=ModelInfo, errors=ErrorBody))
@router.get("/hf-inference/models/{rest:path}", **documents(answer=ModelInfo, errors=ErrorBody))
async def model(request: Request, rest: str) -> Response:
    """Say that a model is served; huggingface_hub asks at `/info`, and at `/health` for the status alone."""
    shared = services(request)
    await shared.caller(bearer(request), "read")
    path = rest.strip("/")
    name = path.removesuffix("/info").removesuffix("/health")
    entry = shared.catalogue[shared.catalogue.resolve("huggingface", name)]
    if path.endswith("/health"):
        return PlainTextResponse("Ok")
    return _json(ModelInfo(model_id=name, pipeline_tag=_task_of(entry), family=entry.family))


@router.get("/status/{rest:path}", **documents(answer=ModelStatus, errors=ErrorBody))
@router.get("/hf-inference/status/{rest:path}", **documents(answer=ModelStatus, errors=ErrorBody))
async def status(request: Request, rest: str) -> Response:
    """Say whether a live worker has a model in its memory, or could."""
    shared = services(request)
    await shared.caller(bearer(request), "read")
    model = shared.catalogue.resolve("huggingface", rest.strip("/"))
    live = await shared.workers()
    able = [about for about in live if model in listed(about.get("models"))]
    is_loaded = any(model in listed(about.get("loaded")) for about in able)
    devices = [str(about.get("device")) for about in able or live] or [shared.settings.device]
    return _json(
        ModelStatus(
            loaded=is_loaded,
            state="Loaded" if is_loaded else "Loadable" if able or not live else "TooBig",
            compute_type="cpu" if all(device == "cpu" for device in devices) else "gpu",
        )
    )


@router.get("/api/models/{rest:path}", **documents(answer=HubModel, errors=ErrorBody, keys=()))
async def hub_model(request: Request, rest: str) -> Response:
    """Say who offers a model, as the Hub does: Novita's dialect here, under the same name.

    Asked with `HF_ENDPOINT` set to this server, without a key, as clients ask the Hub without one; so it names no other
    model.
    """
    shared, name = services(request), rest.strip("/")
    found = shared.catalogue.find("huggingface", name)
    if found is None:
        raise UnknownRoute(f"Model {name[:200]} is not served here.")
    task = _task_of(shared.catalogue[found])
    return _json(
        HubModel(
            id=name, pipeline_tag=task, inferenceProviderMapping={"novita": ProviderMapping(providerId=name, task=task)}
        )
    )


def _task_of(entry: ServedModel) -> str:
    return TEXT_TO_VIDEO if "t2v" in entry.tasks else IMAGE_TO_VIDEO


def _json(answer: BaseModel) -> Response:
    return JSONResponse(answer.model_dump())
