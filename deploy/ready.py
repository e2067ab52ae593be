"""The image's health check: exit status 0 when the server is ready, past any proxy of the environment."""

from __future__ import annotations

import sys
from urllib.request import ProxyHandler, build_opener

try:
    build_opener(ProxyHandler({})).open("http://127.0.0.1:8000/readyz", timeout=9).close()
except OSError as error:
    sys.exit(f"not ready: {error}")
