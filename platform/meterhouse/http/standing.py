"""``GET /admin/keys/{key_id}/limits``: what binds a key, and where it stands, for whoever administrates it."""

from fastapi import APIRouter

from meterhouse.admin.guard import SignedIn
from meterhouse.http.account import AccountParts, LimitList, show_limit
from meterhouse.http.naming import LimitNames
from meterhouse.keys.service import KeyService


def build_standing_router(parts: AccountParts, keys: KeyService) -> APIRouter:
    """Make the route."""
    router = APIRouter(prefix="/admin", tags=["administration"])
    limit_names = LimitNames(parts.routes)

    @router.get("/keys/{key_id}/limits", summary="Every limit that binds a key, and where it stands")
    async def list_key_limits(key_id: str, author: SignedIn) -> LimitList:
        key = await keys.get(key_id, within=author.actor.organization_id)
        states = await parts.meter.list_states(key.organization_id, limit_names.translate(key.limits))
        return LimitList(data=[show_limit(state) for state in states])

    return router
