"""Who has a budget: the limits of spend of organizations, projects and keys, with the names of their owners.

Not here: where a budget stands, which the meter knows, and the bound of prepaid credit (``db.credits``).
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.db.credits import load_credit_limits
from meterhouse.db.engine import Source, reading
from meterhouse.db.limits import limit_of
from meterhouse.db.paging import Page
from meterhouse.db.tables import key, limit_rule, organization, project
from meterhouse.metering import Kind, Limit, Scope

CREDIT_ID = "credit"
"""Stands for a limit that no operator wrote: what an organization has paid ahead."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit of spend and whose it is."""

    id: str
    organization_id: str
    owner_name: str
    limit: Limit


class BudgetStore:
    """Reads budgets. Raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def page_budgets(
        self, organization_id: str | None, after: str | None, limit: int, now_ms: int
    ) -> Page[Budget]:
        """Return a page: those of organizations first, then of projects, then of keys.

        Budgets of archived projects, and of chains of keys that have all ended, are left out.

        Args:
            organization_id: whose; None: everybody's. Of one alone the bound of its prepaid credit comes first.
            after: the id of the last one that was seen; an unknown one gives an empty page.
            limit: how many at most.
            now_ms: Unix ms; keys that expired before have ended.
        """
        every = _every(organization_id, now_ms).subquery()
        statement = sa.select(every)
        async with reading(self._source) as connection:
            credit: list[Budget] = []
            if after not in {None, CREDIT_ID}:
                seen = (await connection.execute(sa.select(every.c.rank).where(every.c.id == after))).scalar()
                if seen is None:
                    return Page([], has_more=False)
                place = sa.tuple_(sa.literal(seen, sa.Integer), sa.literal(after, sa.Text))
                statement = statement.where(sa.tuple_(every.c.rank, every.c.id) > place)
            elif after is None and organization_id is not None:
                credit = await _credit(connection, organization_id)
            rows = (await connection.execute(statement.order_by(every.c.rank, every.c.id).limit(limit + 1))).mappings()
            found = [*credit, *(_budget_of(row) for row in rows)]
        return Page(found[:limit], has_more=len(found) > limit)


async def _credit(connection: AsyncConnection, organization_id: str) -> list[Budget]:
    limits = (await load_credit_limits(connection, {organization_id})).get(organization_id, ())
    name = await connection.scalar(sa.select(organization.c.name).where(organization.c.id == organization_id))
    return [Budget(CREDIT_ID, organization_id, str(name), limit) for limit in limits]


def _every(organization_id: str | None, now_ms: int) -> sa.CompoundSelect[*tuple[object, ...]]:
    first, living = key.alias("first_key"), key.alias("living_key")
    is_alive = sa.and_(
        living.c.revoked_at_ms.is_(None), sa.or_(living.c.expires_at_ms.is_(None), living.c.expires_at_ms > now_ms)
    )
    in_projects = sa.and_(project.c.organization_id == organization.c.id, project.c.archived_at_ms.is_(None))
    of_organizations = _budgets(Scope.ORGANIZATION, 0, organization).select_from(
        limit_rule.join(organization, organization.c.id == limit_rule.c.scope_id)
    )
    of_projects = _budgets(Scope.PROJECT, 1, project).select_from(
        limit_rule.join(project, project.c.id == limit_rule.c.scope_id).join(organization, in_projects)
    )
    of_keys = (
        _budgets(Scope.KEY, 2, first)
        .select_from(
            limit_rule.join(first, first.c.id == limit_rule.c.scope_id)
            .join(project, project.c.id == first.c.project_id)
            .join(organization, in_projects)
        )
        .where(limit_rule.c.scope_id.in_(sa.select(living.c.root_key_id).where(is_alive)))
    )
    parts = [of_organizations, of_projects, of_keys]
    if organization_id is not None:
        parts = [part.where(organization.c.id == organization_id) for part in parts]
    return sa.union_all(*parts)


def _budgets(scope: Scope, rank: int, owner: sa.FromClause) -> sa.Select[*tuple[object, ...]]:
    """Select the budgets of a scope; ``rank`` is its place among the scopes."""
    return sa.select(
        limit_rule,
        sa.literal_column(str(rank), sa.Integer).label("rank"),
        organization.c.id.label("organization_id"),
        owner.c.name.label("owner_name"),
    ).where(limit_rule.c.scope == scope.value, limit_rule.c.kind == Kind.SPEND.value)


def _budget_of(row: sa.RowMapping) -> Budget:
    return Budget(row["id"], row["organization_id"], row["owner_name"], limit_of(row))
