"""Operators and the audit log, for admins."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field

from server.console import audit
from server.console.accounts import AccountError, Role
from server.console.review_routes import no_query
from server.console.sign_in import Admin, Asked, Who, hashing, refusal

router = APIRouter(tags=["operator"])

MAX_CURSOR = 2**63 - 1


class AccountView(BaseModel):
    """An operator. last_seen_at: when they last used the console, to the minute; null: not for 90 days."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None
    last_seen_at: datetime | None


class AccountList(BaseModel):
    """All operators, by name."""

    operators: list[AccountView]


class NewAccount(BaseModel):
    """An operator to be added."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    role: Role
    password: str


class AccountChange(BaseModel):
    """What is to be changed; what is left out stays. The operator is signed out everywhere."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Role | None = None
    password: str | None = None
    disabled: bool | None = None


class AuditView(BaseModel):
    """Who did what. operator: null for the command line. subject: the id or name of what it was done to."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    at: datetime
    operator: str | None
    action: str
    subject: str | None
    details: dict[str, Any] | None


class AuditList(BaseModel):
    """The newest first. next: the cursor of what comes after; null at the end."""

    entries: list[AuditView]
    next: str | None


class AuditQuery(BaseModel):
    """operator, action: only theirs, only such. cursor: `next` of the page before."""

    model_config = ConfigDict(extra="forbid")

    operator: str | None = None
    action: str | None = None
    cursor: Annotated[str | None, Field(pattern=r"^[0-9]{1,19}$")] = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


@router.get("/operators", summary="All operators", dependencies=[Depends(no_query)])
async def operators(console: Asked, _: Admin) -> AccountList:
    found = await console.offload(console.accounts.accounts)
    return AccountList(operators=[AccountView.model_validate(account) for account in found])


@router.post("/operators", summary="Add an operator", status_code=201)
async def add(console: Asked, who: Admin, given: NewAccount) -> Who:
    call = partial(console.accounts.add, given.name, given.role, given.password, by=who.name)
    new = await hashing(console, call)
    return Who.model_validate(new)


@router.patch("/operators/{operator_id}", summary="Change an operator's role or password, or disable them")
async def change(console: Asked, who: Admin, operator_id: str, given: AccountChange) -> AccountView:
    changes = given.model_dump(exclude_unset=True)
    call = partial(console.accounts.change, operator_id, by=who.name, **changes)
    try:
        changed = await (console.offload(call) if given.password is None else hashing(console, call))
    except AccountError as error:
        raise refusal(error) from None
    return AccountView.model_validate(changed)


@router.get("/audit", summary="The audit log: who did what")
async def audit_log(console: Asked, _: Admin, query: Annotated[AuditQuery, Query()]) -> AuditList:
    before = None if query.cursor is None else int(query.cursor)
    if before is not None and before > MAX_CURSOR:
        raise HTTPException(400, "cursor: there is no such page")
    found = await console.offload(
        audit.entries,
        console.db,
        operator=query.operator,
        action=query.action,
        before=before,
        limit=query.limit + 1,
    )
    page = found[: query.limit]
    return AuditList(
        entries=[AuditView.model_validate(entry) for entry in page],
        next=str(page[-1].id) if len(found) > query.limit else None,
    )
