"""Signing in and out, and who asks: `SignedIn` and `Admin` are what every route of the console takes.

    async def inbox(console: Asked, who: SignedIn) -> Inbox: ...

`console.guard` has seen every request before: its session holds, its Origin and its CSRF token are right.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from server import logs
from server.console import passwords
from server.console.accounts import (
    MAX_NAME,
    TOKEN_LENGTH,
    AccountError,
    Identity,
    Role,
    Session,
    csrf_of,
)
from server.console.context import Console, console_of
from server.console.guard import COOKIE, NOT_SIGNED_IN, SESSION, token_of
from server.console.throttle import Busy
from server.limits import address_key

log = logging.getLogger(__name__)

Result = TypeVar("Result")

WRONG: Final = "the name or the password is wrong"


def session_of(request: Request) -> Session:
    """Raises HTTPException 401."""
    session = request.scope.get(SESSION)
    if not isinstance(session, Session):
        raise HTTPException(401, NOT_SIGNED_IN)
    return session


async def _signed_in(session: Annotated[Session, Depends(session_of)]) -> Identity:
    return session.operator


async def _admin(who: Annotated[Identity, Depends(_signed_in)]) -> Identity:
    if who.role != "admin":
        raise HTTPException(403, "only an admin may do that")
    return who


Asked = Annotated[Console, Depends(console_of)]
"""The console of the server that was asked."""
Login = Annotated[Session, Depends(session_of)]
"""The session itself, for streams, which end with it: see `Accounts.on_end`."""
SignedIn = Annotated[Identity, Depends(_signed_in)]
"""Who is signed in, reviewer or admin; anybody else is answered 401."""
Admin = Annotated[Identity, Depends(_admin)]
"""An admin who is signed in; a reviewer is answered 403."""


class Credentials(BaseModel):
    """What somebody signs in with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=MAX_NAME)]
    password: Annotated[str, Field(max_length=passwords.MAX_PASSWORD)]


class NewPassword(BaseModel):
    """The operator's present password and the one that is to hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    old: Annotated[str, Field(max_length=passwords.MAX_PASSWORD)]
    new: str


class Who(BaseModel):
    """An operator."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    role: Role


class Me(BaseModel):
    """Who is signed in. csrf: the X-CSRF-Token for everything that changes something."""

    operator: Who
    csrf: str


router = APIRouter(tags=["operator"])


@router.post("/login", summary="Sign in: the answer sets the session's cookie")
async def login(request: Request, response: Response, console: Asked, given: Credentials) -> Me:
    address = address_key(request.scope.get("client"))
    tries = console.door.tries
    try:
        tries.begin(given.name, address)
    except Busy as busy:
        raise _too_many(busy.seconds, "too many tries") from None
    try:
        sign_in, stranger = console.accounts.sign_in, not tries.familiar(given.name, address)
        found = await hashing(console, partial(sign_in, given.name, given.password), stranger=stranger)
    except BaseException:  # nothing was learnt about the password
        tries.give_back(given.name, address)
        raise
    if found is None:
        logs.event(log, logging.INFO, "sign_in_failed")
        raise HTTPException(401, WRONG)
    tries.right(given.name, address)
    await _end_former(request, console)
    operator, token = found
    _set_cookie(request, response, token)
    return Me(operator=Who.model_validate(operator), csrf=csrf_of(token))


@router.post("/logout", summary="Sign out: the session ends, and with it its streams", status_code=204)
async def logout(request: Request, response: Response, console: Asked, session: Login) -> None:
    await console.offload(console.accounts.close, session)
    _set_cookie(request, response, None)


@router.get("/me", summary="Who is signed in")
async def me(session: Login) -> Me:
    return Me(operator=Who.model_validate(session.operator), csrf=session.csrf)


@router.post("/password", summary="Change one's own password: all other sessions end", status_code=204)
async def change_password(request: Request, console: Asked, session: Login, given: NewPassword) -> None:
    """Whoever finds a browser that is signed in has no more tries here than at the door."""
    name, address = session.operator.name, address_key(request.scope.get("client"))
    tries = console.door.tries
    try:
        tries.begin(name, address)
    except Busy as busy:
        raise _too_many(busy.seconds, "too many tries") from None
    try:
        change = console.accounts.change_password
        changed = await hashing(console, partial(change, session, given.old, given.new))
    except BaseException:
        tries.give_back(name, address)
        raise
    if not changed:
        raise HTTPException(403, "the present password is not that")
    tries.give_back(name, address)


async def hashing(console: Console, call: Callable[[], Result], *, stranger: bool = False) -> Result:
    """What a call gives that looks at a password, or makes one, when it is its turn.

    stranger: whether it may be anybody who asks. Raises HTTPException: 429 when too many wait, and for an
    AccountError what says the same.
    """
    try:
        return await console.door.hashing(lambda: console.offload(call), stranger=stranger)
    except Busy as busy:
        raise _too_many(busy.seconds, "too many at once") from None
    except AccountError as error:
        raise refusal(error) from None


def refusal(error: AccountError) -> HTTPException:
    """An account error as it is answered."""
    status = {"taken": 409, "last_admin": 409, "invalid": 400, "unknown": 404}[error.kind]
    return HTTPException(status, str(error))


async def _end_former(request: Request, console: Console) -> None:
    """Whoever signs in anew in the same browser has one session, not two."""
    token = token_of(request)
    if token is not None and len(token) == TOKEN_LENGTH:
        former = await console.offload(console.accounts.find, token)
        if former is not None:
            await console.offload(console.accounts.close, former)


def _set_cookie(request: Request, response: Response, token: str | None) -> None:
    """The browser keeps it until it is closed, shows it to no script, and sends it for no foreign page."""
    # Behind a proxy whose word is not believed, the page itself knows that it came over TLS.
    secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
    response.set_cookie(
        COOKIE,
        token or "",
        max_age=0 if token is None else None,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def _too_many(seconds: float, words: str) -> HTTPException:
    wait = max(1, math.ceil(seconds))
    return HTTPException(429, f"{words}; try again in {wait} s", {"retry-after": str(wait)})
