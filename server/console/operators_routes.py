"""Operators and the audit log, for admins."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.console import audit
from server.console.accounts import AccountError, Role
from server.console.filters import Time
from server.console.sign_in import Admin, Asked, Who, hashing, refusal

router = APIRouter(tags=["operator"])


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
    """The newest first. next: what `before` is for the page after it; null at the end."""

    entries: list[AuditView]
    next: str | None


class AuditQuery(BaseModel):
    """Which entries, and which part of them. All that is given must hold."""

    model_config = ConfigDict(extra="forbid")

    account: str | None = Field(None, description="the name of who did it, or: command line")
    action: str | None = Field(None, description="what was done, such as conversation.take")
    from_: Time | None = Field(None, alias="from", description="at this time or after it")
    to: Time | None = Field(None, description="before this time")
    before: str | None = Field(None, description="the `next` of the page before; none for the first page")
    limit: int = Field(50, ge=1, le=200, description="entries on a page, at most")

    @model_validator(mode="after")
    def _check_times(self) -> AuditQuery:
        if self.from_ is not None and self.to is not None and self.from_ > self.to:
            raise ValueError("from is later than to")
        return self


@router.get("/operators", summary="All operators")
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
    try:
        before = None if query.before is None else audit.Place.of(query.before)
    except ValueError as error:
        raise HTTPException(400, f"before: {error}") from None
    found = await console.offload(
        audit.entries,
        console.db,
        operator=query.account,
        action=query.action,
        since=query.from_,
        until=query.to,
        before=before,
        limit=query.limit + 1,
    )
    page = found[: query.limit]
    return AuditList(
        entries=[AuditView.model_validate(entry) for entry in page],
        next=audit.Place(page[-1].at, page[-1].id).cursor() if len(found) > query.limit else None,
    )
