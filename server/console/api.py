"""All routes of the console, under `/api/operator`."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import ParamTypes
from fastapi.routing import APIRoute

from server.console import (
    canned_routes,
    change_routes,
    conversation_routes,
    erase_routes,
    export_routes,
    import_routes,
    inbox_routes,
    job_routes,
    live_routes,
    masking_routes,
    models_routes,
    operators_routes,
    pages,
    review_routes,
    rollout_routes,
    sign_in,
    statistics_routes,
    suggestion_routes,
    takeover_routes,
    topic_routes,
)
from server.console.context import Console
from server.console.guard import Guard

PREFIX: Final = "/api/operator"

ROUTERS: Final[tuple[APIRouter, ...]] = (
    sign_in.router,
    operators_routes.router,
    inbox_routes.router,
    conversation_routes.router,
    review_routes.router,
    models_routes.router,
    job_routes.router,
    change_routes.router,
    rollout_routes.router,
    takeover_routes.router,
    live_routes.router,
    export_routes.router,
    import_routes.router,
    masking_routes.router,
    erase_routes.router,
    canned_routes.router,
    statistics_routes.router,
    suggestion_routes.router,
    topic_routes.router,
)


def add(app: FastAPI, console: Console) -> None:
    """Add the routes and the pages to an application, and the guard before them."""
    app.state.console = console
    app.add_middleware(Guard, console=console)
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX, dependencies=[Depends(only_known_keys)])
    app.include_router(pages.router)


def only_known_keys(request: Request) -> None:
    """Raises HTTPException 400 for a query key that the route does not know, such as a misspelled one."""
    given = request.query_params
    if given:
        known = query_keys(request.scope["route"])
        for key in given:
            if key not in known:
                raise HTTPException(400, f"{key[:64]}: there is no such query key")


def query_keys(route: APIRoute) -> frozenset[str]:
    """What may stand behind the question mark."""
    return frozenset(
        each.alias
        for each in get_flat_params(route.dependant)
        # The fields of a model of query keys do not say where they stand.
        if getattr(each.field_info, "in_", ParamTypes.query) is ParamTypes.query
    )
