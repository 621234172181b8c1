"""The addresses of stored responses (``GET /v1/responses/{id}`` and its kin), of which there are none here."""

from fastapi import APIRouter

from meterhouse.errors import NotFound

_METHODS = ["GET", "POST", "DELETE"]


def build_unstored_router() -> APIRouter:
    """Answer each with a 404 that says what to do instead."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/v1/responses/{rest:path}", methods=_METHODS)
    async def refuse(rest: str) -> None:  # noqa: ARG001 - whatever it is, there is nothing
        raise NotFound(
            "Responses are not stored here, so none can be read, listed, cancelled, counted or compacted. "
            "POST /v1/responses with the whole conversation in 'input'."
        )

    return router
