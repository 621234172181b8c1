"""The console finds out who signs in also where the gateway's host cannot sign exports."""

import asyncio
from pathlib import Path

from api.asking import Tenant, issue_admin
from fakes.gateway import Gateway
from meterhouse.console.gateway import GatewayClient
from meterhouse.exports import SIGNING_KEY
from meterhouse.identity import Role


def test_every_role_is_found_where_nothing_can_be_signed(tmp_path: Path) -> None:
    with Gateway(tmp_path / "data") as gateway:
        (gateway.data / SIGNING_KEY).touch(0o644)  # others may read it: it is not used
        tenant = Tenant(gateway)
        secrets = {
            "owner": issue_admin(gateway, Role.OWNER, tenant.organization_id),
            "reader": issue_admin(gateway, Role.READER, tenant.organization_id),
            "operator": gateway.admin_key,
            "tenant": tenant.key,
        }
        assert gateway.request("GET", "/admin/ledger/public-key", key=secrets["owner"])[0] >= 500

        async def find_all() -> dict[str, str | None]:
            async with GatewayClient(gateway.url) as client:
                return {name: await client.find_role(secret) for name, secret in secrets.items()}

        assert asyncio.run(find_all()) == {name: name for name in secrets}
