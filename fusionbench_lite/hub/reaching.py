"""Whether the hub answers, asked once."""

from __future__ import annotations

import os
import socket

from fusionbench_lite.hub.settings import current, origin

PATIENCE = 3.0
"""Seconds in which the hub has to take a connection."""


def reached() -> str:
    """Return the hub of downloads and whether it answers; where it does not, the rest of the process goes without it."""
    now = current()
    if now.offline:
        return f"{now.endpoint}, not asked (HF_HUB_OFFLINE)"
    place = origin(now.endpoint)
    proxied = any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name, value in os.environ.items() if value)
    try:
        if place is not None and not (proxied and place[1] not in ("127.0.0.1", "localhost")):
            socket.create_connection(place[1:], timeout=PATIENCE).close()
    except OSError as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return f"{now.endpoint}, which does not answer ({error.strerror or error}): sizes of data sets are not known"
    return now.endpoint
