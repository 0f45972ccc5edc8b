"""Why a request failed, in words, and whether to repeat it; the repetition itself.

A failure is repeated when the next attempt may well succeed: time limits, broken connections, answers 408, 429, 500, 502, 503 and
504, and content that arrived damaged. Waits double from `settings.wait` up to 30 times that, shortened at random so that many
processes do not come back at once. What a server asks for in Retry-After (or in the hub's own `ratelimit` header) is honoured up
to 300 waits; a server that asks for more is not waited for. Attempts end after 5 in a row that brought no new bytes, 30 in
all, or 900 waits. A server that could not be reached in as many attempts is tried once by every later request of the process, until
it answers: a table of a hundred runs without a network ends soon.
"""

from __future__ import annotations

import email.utils
import logging
import random
import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from fusionbench_lite.hub.asked import Asked, HubFile, WebFile
from fusionbench_lite.hub.settings import HubSettings, http

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 5
ATTEMPTS_IN_ALL = 30
LONGEST_WAIT = 30.0
LONGEST_ASKED_WAIT = 300.0
LONGEST_SUM = 900.0
NEW_BYTES = 1 << 20
UNREACHABLE = "unreachable"
_AGAIN = {408, 429, 500, 502, 503, 504}
_jitter = random.Random()
_unreachable: set[str] = set()
"""Endpoints that all attempts of a request have failed to reach, and none has since."""


class Failure(Exception):
    """A request that failed. `kind` groups causes, `fix` tells the user what to do, `again` says whether to repeat."""

    def __init__(self, kind: str, reason: str, fix: str, again: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = " ".join(reason.split())
        self.fix = fix
        self.again = again
        self.wait = wait


def repeat(attempt: Callable[[], T], settings: HubSettings, asked: Asked, progress: Callable[[], int] = lambda: 0) -> T:
    """Return what `attempt` returns, repeating it while its failures can pass; `progress` counts bytes that need not come again.

    Raises the last Failure, with the number of attempts in its reason.
    """
    tried, fruitless, waited, most = 0, 0, 0.0, progress()
    while True:
        try:
            result = attempt()
            _unreachable.discard(settings.endpoint)
            return result
        except Failure as failure:
            tried += 1
            now = progress()
            fruitless = 0 if now >= most + NEW_BYTES else fruitless + 1
            most = max(most, now)
            wait = _wait(failure, fruitless, settings)
            known = failure.kind == UNREACHABLE and settings.endpoint in _unreachable
            over = known or fruitless >= ATTEMPTS or tried >= ATTEMPTS_IN_ALL or waited + wait > LONGEST_SUM * settings.wait
            too_long = failure.wait is not None and failure.wait > LONGEST_ASKED_WAIT
            if failure.again and (over or too_long):
                asks = f"; the server asks to wait {failure.wait:.0f} s" if failure.wait else ""
                times = "once" if tried == 1 else f"{tried} times"
                failure.reason += f" (tried {times}{asks})"
            if not failure.again or over or too_long:
                if failure.kind == UNREACHABLE:
                    _unreachable.add(settings.endpoint)
                raise
            log.warning("%s: %s; trying again in %.1f s", asked.label, failure.reason, wait)
            waited += wait
            time.sleep(wait)


def _wait(failure: Failure, fruitless: int, settings: HubSettings) -> float:
    if failure.wait is not None:
        return min(failure.wait, LONGEST_ASKED_WAIT) * min(settings.wait, 1.0)
    return min(2.0 ** max(fruitless - 1, 0), LONGEST_WAIT) * settings.wait * _jitter.uniform(0.5, 1.0)


def of_answer(answer: Any, asked: Asked, settings: HubSettings) -> Failure:
    """Return the Failure that an answer with status 400 or above stands for."""
    status = int(answer.status_code)
    code = answer.headers.get("X-Error-Code", "")
    if status in _AGAIN:
        names = {429: "too many requests", 503: "the service is unavailable"}
        reason = f"{settings.endpoint} answered {status} ({names.get(status, 'a failure of the server')})"
        fix = "try later; what has arrived is kept and continued"
        fix += "" if settings.token or isinstance(asked, WebFile) else ", and HF_TOKEN raises the limits"
        return Failure("busy", reason, fix, again=True, wait=_asked_wait(answer.headers))
    if isinstance(asked, WebFile):
        reason = "has no such file" if status in (404, 410) else f"answered {status}"
        return Failure("no file", f"{settings.endpoint} {reason}", "check the address, which may have changed")
    if status in (401, 403) and code != "RepoNotFound":
        return _forbidden(status, code, asked, settings)
    if status in (401, 404):
        return _missing(code, asked, settings)
    message = answer.headers.get("X-Error-Message", "")
    return Failure("refused", f"{settings.endpoint} answered {status} {message}", "check HF_ENDPOINT and the names")


def _forbidden(status: int, code: str, asked: HubFile, settings: HubSettings) -> Failure:
    who = "the token in use was refused" if settings.token else "no token was sent"
    what = "the repository is gated" if code == "GatedRepo" else f"access was refused with {status}"
    fix = f"accept the terms at https://huggingface.co/{asked.page} and set HF_TOKEN to a token of that account that may read"
    return Failure("gated", f"{what} and {who}", fix)


def _missing(code: str, asked: HubFile, settings: HubSettings) -> Failure:
    at = settings.endpoint
    if code == "RevisionNotFound":
        return Failure("no revision", f"{at} has no revision {asked.revision} of it", "give a branch, a tag or a whole commit")
    if code == "RepoNotFound":
        token = "the token in use cannot see it" if settings.token else "set HF_TOKEN if it is private"
        fix = f"check the name and its kind ({asked.kind}), or {token}"
        return Failure("no repository", f"{at} has no {asked.kind} repository {asked.repo}", fix)
    return Failure("no file", f"{at} has no such file", "check the name")


def of_error(error: Exception, settings: HubSettings) -> Failure:
    """Return the Failure that an exception of the HTTP library stands for."""
    library = http()
    at = settings.endpoint
    if isinstance(error, library.TooManyRedirects):
        return endless(settings)
    if isinstance(error, (library.InvalidURL, library.UnsupportedProtocol, library.LocalProtocolError)):
        fix = f"check {settings.address}" + (" and HF_TOKEN" if settings.token else "")
        return Failure("address", f"{at} cannot be asked: {error}", fix)
    if certificate := _certificate(error):
        fix = "set SSL_CERT_FILE to your network's certificates and check the clock"
        return Failure("certificate", f"the certificate of {at} is not accepted: {certificate}", fix)
    if isinstance(error, library.TimeoutException):
        limits = f"{settings.answer_timeout:g} s for an answer, {settings.data_timeout:g} s for data"
        fix = "try later, or raise HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT on a slow line"
        return Failure("stall", f"{at} went silent ({limits})", fix, again=True)
    if isinstance(error, library.ProxyError):
        return Failure("proxy", f"the proxy refused: {error}", "check HTTPS_PROXY and NO_PROXY", again=True)
    if isinstance(error, library.ConnectError):
        fix = f"check the network, proxies (HTTPS_PROXY) and {settings.address}, or fill the cache on a machine with a network"
        return Failure(UNREACHABLE, f"{at} cannot be reached: {error}", fix, again=True)
    reason = str(error) or type(error).__name__
    fix = "try again; what has arrived is kept and continued"
    return Failure("broken", f"the connection to {at} broke: {reason}", fix, again=True)


def endless(settings: HubSettings) -> Failure:
    """Return the Failure of redirects that lead nowhere."""
    return Failure("redirects", f"{settings.endpoint} redirects without end", f"check {settings.address} and proxies")


def astray(settings: HubSettings, to: str | None) -> Failure:
    """Return the Failure of a redirect to what is no address."""
    if settings.address == "HF_ENDPOINT":
        return no_hub(settings.endpoint, f"it redirects to {to}")
    return Failure("redirects", f"{settings.endpoint} redirects to {to}, which is no address", f"check {settings.address}")


def no_hub(endpoint: str, missing: str) -> Failure:
    """Return the Failure of a server that answers, but not as a hub does: a login page of a network, a wrong address."""
    fix = "check HF_ENDPOINT, and whether the network wants a login in a browser first"
    return Failure("no hub", f"{endpoint} does not answer as a hub does ({missing})", fix)


def _certificate(error: BaseException) -> str | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return str(getattr(seen, "verify_message", seen))
        seen = seen.__cause__ or seen.__context__
    return "certificate verify failed" if "CERTIFICATE_VERIFY_FAILED" in str(error) else None


def _asked_wait(headers: Any) -> float | None:
    """Return the seconds a server asks to wait: Retry-After as a number or a date, or the hub's `ratelimit: ...;t=55`."""
    text = headers.get("Retry-After", "").strip()
    if text:
        try:
            return max(float(text), 0.0)
        except ValueError:
            pass
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        return max((moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)
    left = re.search(r"\br\s*=\s*0\b.*\bt\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return float(left.group(1)) if left else None
