"""The console's one page, under each of its addresses, and the files that it loads.

All of it is behind `console.guard`: who is not signed in gets the sign-in page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException, Request
from fastapi.staticfiles import StaticFiles
from starlette.responses import FileResponse, Response

from server.console.sign_in import SignedIn

WEB: Final = Path(__file__).resolve().parent / "web"

router = APIRouter(include_in_schema=False)


@router.api_route("/operator/static/{path:path}", methods=["GET", "HEAD"])
async def file(request: Request, path: str, _: SignedIn) -> Response:
    if not WEB.is_dir():
        raise HTTPException(404, "there is no such file")
    return await StaticFiles(directory=WEB).get_response(path, request.scope)


@router.api_route("/operator", methods=["GET", "HEAD"])
@router.api_route("/operator/{path:path}", methods=["GET", "HEAD"])
async def page(_: SignedIn) -> Response:
    index = WEB / "index.html"
    if not index.is_file():
        raise HTTPException(404, "the console has no page")
    return FileResponse(index)
