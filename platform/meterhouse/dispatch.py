"""Composition of what sends requests to providers, and of what operators hear of it: log events and metrics."""

import hashlib
import hmac

from meterhouse.errors import UpstreamError
from meterhouse.http.attempts import Attempts
from meterhouse.http.body import BodyEditor
from meterhouse.ids import public_request_id
from meterhouse.ledger.admission import AdmitsIntents
from meterhouse.providers.breaker import Breakers, RetryBudget, State
from meterhouse.providers.provider import Deployment
from meterhouse.providers.upstream import Upstream
from meterhouse.request import Attempt
from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.metrics import Metrics, Watched


def build_attempts(upstream: Upstream, journal: AdmitsIntents, metrics: Metrics, pepper: bytes) -> Attempts:
    """Make the attempts of a process; ``pepper`` keys what separates tenants at providers."""
    tenant_secret = hmac.new(pepper, b"tenant separation", hashlib.sha256).digest()
    operators = _Operators()
    attempts = Attempts(
        upstream,
        Breakers(on_change=operators.hear_of_deployment),
        RetryBudget(),
        journal,
        BodyEditor(tenant_secret, operators.hear_of_parameter),
        _log_failed_attempt,
    )
    metrics.watch_each(Watched.DEPLOYMENTS_OUT, attempts.breakers.count_out)
    metrics.watch_each(Watched.ACCOUNTS_OUT, attempts.breakers.count_without_account)
    metrics.watch(Watched.EXTRA_ATTEMPTS, lambda: attempts.budget.spent)
    metrics.watch(Watched.EXTRA_ATTEMPTS_REFUSED, lambda: attempts.budget.refused)
    return attempts


class _Operators:
    """Tells operators what tenants need not know."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def hear_of_deployment(self, deployment_id: str, state: State, reason: str) -> None:
        """Log that a deployment went out or came back. Nobody but an operator can mend an account: that is an error."""
        log = get_logger()
        if state == "closed":
            log.warning(Event.DEPLOYMENT_CLOSED, deployment=deployment_id)
            return
        say = log.error if state == "account" else log.warning
        say(Event.DEPLOYMENT_OPENED, deployment=deployment_id, state=state, reason=reason)

    def hear_of_parameter(self, deployment: Deployment, parameter: str) -> None:
        """Log what a row made us leave out: once for each provider and parameter, because every request may.

        Both names come from the catalog's rows, so that they are few.
        """
        provider = deployment.provider.name
        if (provider, parameter) not in self._told:
            self._told.add((provider, parameter))
            get_logger().warning(Event.PARAMETER_DROPPED, provider=provider, parameter=parameter)


def _log_failed_attempt(request_id: str, attempt: Attempt, error: UpstreamError) -> None:
    get_logger().warning(
        Event.ATTEMPT_FAILED,
        request_id=public_request_id(request_id),
        attempt=attempt.number,
        deployment=attempt.deployment,
        status=error.status,
        code=error.code,
        detail=error.detail,
    )
