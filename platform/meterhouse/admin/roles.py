"""Who may do what: one line for each route of the administration. A route without a line is closed to everybody.

Whoever may is still bound to an organization, but for an operator; that is checked where an object is looked up. What
there is to sell, and the limits of an organization as a whole, are the operators': no tenant raises its own bound.
"""

from collections.abc import Mapping
from types import MappingProxyType

from meterhouse.identity import Role

OPERATORS = frozenset({Role.OPERATOR})
CHANGERS = frozenset({Role.OPERATOR, Role.OWNER})
LOOKERS = frozenset(Role)

MATRIX: Mapping[str, frozenset[Role]] = MappingProxyType(
    {
        # --- organizations and projects
        "POST /admin/organizations": OPERATORS,
        "GET /admin/organizations": LOOKERS,
        "GET /admin/organizations/{organization_id}": LOOKERS,
        "POST /admin/organizations/{organization_id}": CHANGERS,
        "POST /admin/projects": CHANGERS,
        "GET /admin/projects": LOOKERS,
        "POST /admin/projects/{project_id}/archive": CHANGERS,
        # --- keys and limits
        "POST /admin/keys": CHANGERS,
        "GET /admin/keys": LOOKERS,
        "POST /admin/keys/leaks": CHANGERS,
        "GET /admin/keys/{key_id}": LOOKERS,
        "GET /admin/keys/{key_id}/limits": LOOKERS,
        "POST /admin/keys/{key_id}/rotate": CHANGERS,
        "DELETE /admin/keys/{key_id}": CHANGERS,
        # An organization's own limits are the operators' alone, which the route checks itself.
        "PUT /admin/limits": CHANGERS,
        "GET /admin/limits": LOOKERS,
        # --- billing
        "GET /admin/organizations/{organization_id}/invoices": LOOKERS,
        "GET /admin/organizations/{organization_id}/invoices/{month}": LOOKERS,
        "POST /admin/organizations/{organization_id}/invoices/{month}": OPERATORS,
        "GET /admin/organizations/{organization_id}/credits": LOOKERS,
        "POST /admin/organizations/{organization_id}/credits": OPERATORS,
        "GET /admin/organizations/{organization_id}/webhooks": LOOKERS,
        "POST /admin/organizations/{organization_id}/webhooks": CHANGERS,
        "DELETE /admin/organizations/{organization_id}/webhooks/{webhook_id}": CHANGERS,
        "GET /admin/organizations/{organization_id}/deliveries": LOOKERS,
        # --- what there is to sell
        "POST /admin/prices": OPERATORS,
        "GET /admin/prices": OPERATORS,
        "GET /admin/providers": OPERATORS,
        "PUT /admin/providers/{name}": OPERATORS,
        "DELETE /admin/providers/{name}": OPERATORS,
        "GET /admin/routes": OPERATORS,
        "PUT /admin/routes/{model:path}": OPERATORS,
        "DELETE /admin/routes/{model:path}": OPERATORS,
        "POST /admin/tokens/revoke": OPERATORS,
        # --- what was used
        "GET /v1/organization/usage/completions": LOOKERS,
        "GET /v1/organization/usage/embeddings": LOOKERS,
        "GET /v1/organization/usage/moderations": LOOKERS,
        "GET /v1/organization/usage/images": LOOKERS,
        "GET /v1/organization/usage/audio_speeches": LOOKERS,
        "GET /v1/organization/usage/audio_transcriptions": LOOKERS,
        "GET /v1/organization/costs": LOOKERS,
        "GET /admin/series": LOOKERS,
        "GET /admin/ledger/records": CHANGERS,
        "GET /admin/ledger/receipts/{request_id}": CHANGERS,
        "GET /admin/ledger/public-key": CHANGERS,
        "GET /admin/ledger/export": CHANGERS,
        "POST /admin/ledger/verify": CHANGERS,
        # --- the OpenAI Administration API
        "GET /v1/organization/projects": LOOKERS,
        "POST /v1/organization/projects": CHANGERS,
        "GET /v1/organization/projects/{project_id}": LOOKERS,
        "POST /v1/organization/projects/{project_id}": CHANGERS,
        "POST /v1/organization/projects/{project_id}/archive": CHANGERS,
        "GET /v1/organization/projects/{project_id}/service_accounts": LOOKERS,
        "POST /v1/organization/projects/{project_id}/service_accounts": CHANGERS,
        "GET /v1/organization/projects/{project_id}/service_accounts/{service_account_id}": LOOKERS,
        "POST /v1/organization/projects/{project_id}/service_accounts/{service_account_id}": CHANGERS,
        "DELETE /v1/organization/projects/{project_id}/service_accounts/{service_account_id}": CHANGERS,
        "POST /v1/organization/projects/{project_id}/service_accounts/{service_account_id}/api_keys": CHANGERS,
        "GET /v1/organization/projects/{project_id}/api_keys": LOOKERS,
        "GET /v1/organization/projects/{project_id}/api_keys/{api_key_id}": LOOKERS,
        "POST /v1/organization/projects/{project_id}/api_keys/{api_key_id}": CHANGERS,
        "DELETE /v1/organization/projects/{project_id}/api_keys/{api_key_id}": CHANGERS,
        "GET /v1/organization/projects/{project_id}/rate_limits": LOOKERS,
        "POST /v1/organization/projects/{project_id}/rate_limits/{rate_limit_id:path}": CHANGERS,
        "GET /v1/organization/projects/{project_id}/model_permissions": LOOKERS,
        "POST /v1/organization/projects/{project_id}/model_permissions": CHANGERS,
        "DELETE /v1/organization/projects/{project_id}/model_permissions": CHANGERS,
        "GET /v1/organization/projects/{project_id}/spend_limit": LOOKERS,
        "POST /v1/organization/projects/{project_id}/spend_limit": CHANGERS,
        "DELETE /v1/organization/projects/{project_id}/spend_limit": CHANGERS,
        "GET /v1/organization/spend_limit": LOOKERS,
        "POST /v1/organization/spend_limit": OPERATORS,
        "DELETE /v1/organization/spend_limit": OPERATORS,
        "GET /v1/organization/spend_alerts": LOOKERS,
        "POST /v1/organization/spend_alerts": CHANGERS,
        "GET /v1/organization/spend_alerts/{alert_id}": LOOKERS,
        "POST /v1/organization/spend_alerts/{alert_id}": CHANGERS,
        "DELETE /v1/organization/spend_alerts/{alert_id}": CHANGERS,
        "GET /v1/organization/projects/{project_id}/spend_alerts": LOOKERS,
        "POST /v1/organization/projects/{project_id}/spend_alerts": CHANGERS,
        "GET /v1/organization/projects/{project_id}/spend_alerts/{alert_id}": LOOKERS,
        "POST /v1/organization/projects/{project_id}/spend_alerts/{alert_id}": CHANGERS,
        "DELETE /v1/organization/projects/{project_id}/spend_alerts/{alert_id}": CHANGERS,
        "GET /v1/organization/admin_api_keys": LOOKERS,
        "POST /v1/organization/admin_api_keys": CHANGERS,
        "GET /v1/organization/admin_api_keys/{key_id}": LOOKERS,
        "DELETE /v1/organization/admin_api_keys/{key_id}": CHANGERS,
        # --- who does what now
        "GET /admin/live": LOOKERS,
        # --- who changed what
        "GET /admin/audit": LOOKERS,
        "GET /v1/organization/audit_logs": LOOKERS,
    }
)
"""The roles that may use a route, by its method and the template of its path."""
