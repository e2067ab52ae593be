"""Errors of the OpenAI-compatible API: our code and message, and OpenAI's type and param beside them."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from starlette.responses import Response

_TYPES: Final = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is refused.

    Attributes: status (HTTP), code (for programs), message (for people, without what the client sent), param
    (the field at fault), retry_after (seconds after which it is worth another try).
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"code": self.code, "message": self.message, "type": kind, "param": self.param}
        return {"error": error}

    def response(self) -> Response:
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(math.ceil(self.retry_after))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Response(json.dumps(self.body), self.status, headers, "application/json")


def bad_request(message: str, param: str | None = None, code: str = "bad_request") -> ApiError:
    """400."""
    return ApiError(400, code, message, param=param)
