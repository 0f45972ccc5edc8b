"""What the environment says about the hub: address, token, time limits, offline or not.

huggingface_hub reads its variables once, when it is imported. Here they are read when a file is asked for, so that a program
that sets them after an import, as tests do, gets what it says. The variables are huggingface_hub's own: HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HOME, HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT. Proxies and certificates are those of its
session (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import urllib.parse
from pathlib import Path
from types import ModuleType
from typing import Any

from fusionbench_lite.errors import InputError
from fusionbench_lite.paths import expanded

WAIT_VARIABLE = "FUSIONBENCH_LITE_RETRY_SECONDS"
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubSettings:
    """`endpoint` without a slash at its end; time limits in seconds; `wait`: seconds before the first repetition of a request.

    `address` is what a user corrects where the endpoint is wrong.
    """

    endpoint: str
    offline: bool
    token: str | None
    answer_timeout: float
    data_timeout: float
    wait: float
    address: str = "HF_ENDPOINT"

    def elsewhere(self, url: str) -> HubSettings:
        """Return the settings for a file of another server: its own endpoint, and never the hub's token."""
        parts = urllib.parse.urlsplit(url)
        return dataclasses.replace(self, endpoint=f"{parts.scheme}://{parts.netloc}", token=None, address="the address")

    def headers(self, with_token: bool = True) -> dict[str, str]:
        """Return the headers of a request; compressed answers are declined, since their length would not be the file's."""
        from fusionbench_lite.base.version import __version__

        headers = {"user-agent": f"fusionbench_lite/{__version__}", "accept-encoding": "identity"}
        if self.token and with_token:
            headers["authorization"] = f"Bearer {self.token}"
        return headers


def library() -> ModuleType:
    """Return huggingface_hub. Raises InputError where it refuses the environment."""
    try:
        importlib.import_module("huggingface_hub.constants")  # where the variables are read; the package itself imports it late
        return importlib.import_module("huggingface_hub")
    except ValueError as error:
        raise InputError(f"huggingface_hub refuses a variable of the environment: {error}; correct the HF_ variables") from error


def http() -> Any:
    """Return the HTTP library of huggingface_hub's session: httpx in its first series, httpx2 later."""
    library()
    errors = importlib.import_module("huggingface_hub.errors")
    base = next(cls for cls in errors.HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError")
    return importlib.import_module(base.__module__.partition(".")[0])


def current() -> HubSettings:
    """Return what the environment says now. Raises InputError for a value that cannot be used."""
    library()
    constants = importlib.import_module("huggingface_hub.constants")
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    if origin(endpoint) is None:
        raise InputError(f"HF_ENDPOINT={endpoint} is no address of a hub: it starts with http:// or https://")
    return HubSettings(
        endpoint=endpoint, offline=offline(), token=_token(constants),
        answer_timeout=_seconds("HF_HUB_ETAG_TIMEOUT", constants.HF_HUB_ETAG_TIMEOUT) or constants.DEFAULT_ETAG_TIMEOUT,
        data_timeout=_seconds("HF_HUB_DOWNLOAD_TIMEOUT", constants.HF_HUB_DOWNLOAD_TIMEOUT) or constants.DEFAULT_DOWNLOAD_TIMEOUT,
        wait=_seconds(WAIT_VARIABLE, 1.0),
    )


def origin(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of an address of the web; None for what is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return (parts.scheme, host.lower(), port or default) if default and host else None


def offline() -> bool:
    """Whether requests are forbidden, by the environment now or when huggingface_hub was imported."""
    library()
    constants = importlib.import_module("huggingface_hub.constants")
    now = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return bool(constants.HF_HUB_OFFLINE) or now.upper() in _TRUE


def shared_cache() -> Path:
    """Return the folder of the user's own Hugging Face cache."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return expanded(folder)
    if home := os.environ.get("HF_HOME"):
        return expanded(home) / "hub"
    library()
    return Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)


def _token(constants: Any) -> str | None:
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    token: str | None = library().get_token()
    if token is not None and not token.isascii():
        raise InputError("HF_TOKEN holds characters that no token has: copy it again from https://huggingface.co/settings/tokens")
    return token


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    if not text:
        return float(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise InputError(f"{variable}={text} is no number of seconds: write one such as {default:g}")
    return value
