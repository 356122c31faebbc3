"""`GET /v1/models` and `GET /v1/models/{model}`: what is served, in OpenAI's words."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from server.credentials import bearer
from server.dialects.openai.creation import resolve, served
from server.dialects.openai.errors import ErrorBody
from server.openapi import documents
from server.services import services


class Model(BaseModel):
    """One name that `model` may be.

    Args:
        created: always 0: nobody knows when weights were made, and the clients' type wants a whole number.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "polyreel"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


router = APIRouter()


@router.get("/models", **documents(answer=ModelList, errors=ErrorBody))
async def list_models(request: Request) -> Response:
    """List every name that `model` may be."""
    shared = services(request)
    await shared.caller(bearer(request), "read")
    names = served(shared.catalogue)
    return JSONResponse(ModelList(data=[Model(id=name) for name in names]).model_dump())


# A path, because names such as Lightricks/LTX-Video have slashes in them; clients send them as %2F or as they are.
@router.get("/models/{model:path}", **documents(answer=Model, errors=ErrorBody))
async def get_model(request: Request, model: str) -> Response:
    """Answer whether a name is served."""
    shared = services(request)
    await shared.caller(bearer(request), "read")
    resolve(shared.catalogue, model)
    return JSONResponse(Model(id=model).model_dump())
