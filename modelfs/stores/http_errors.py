"""Every way in which an HTTP request can fail before its answer, as one of our errors.

Rule: the line says who failed, the store or a proxy on the way to it, and what may succeed later is Unavailable: a
certificate that does not hold, or a refusal, is not asked for again.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time

import requests
import urllib3

from modelfs.errors import BadInput, DeadlinePassed, Forbidden, ModelfsError, Unavailable, WrongServer
from modelfs.units import Deadline, rfc3339

NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})  # as OpenSSL 1.1 to 3.x say it
_NOT_OURS = re.compile(r"ALERT_(?:\w*CERTIFICATE\w*|UNKNOWN_CA|ACCESS_DENIED)$")
_STORE = ("a store does not answer", "a store does not answer with TLS", "a store does not answer as itself")
_PROXY = ("a proxy does not answer", "a proxy does not answer with TLS", "a proxy does not answer as itself")
_CLOCK_CODES = (9, 10)  # X509_V_ERR: not yet valid, has expired
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3}) ?(.*)", re.DOTALL)
_OURS = (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, requests.exceptions.InvalidProxyURL,
         requests.exceptions.InvalidSchema)


def failure(error: Exception, deadline: Deadline, where: str, proxy: str = "", *,
            connecting: bool = False) -> ModelfsError:
    """The error of a network that did not work: it can be tried again, unless the deadline passed.

    proxy: by which where was asked, or "". connecting: whether the way to where was not open yet.
    """
    cause = _innermost(error)
    if isinstance(error, _OURS):
        return BadInput("a request cannot be made", where=where, why=_text_of(cause) if isinstance(
            error, requests.exceptions.InvalidSchema) else type(cause).__name__)
    if proxy and (found := _TUNNEL.fullmatch(str(cause))):
        return proxy_refuses(proxy, int(found[1]), found[2])
    at_proxy = bool(proxy) and connecting
    (silent, not_tls, not_itself), where = (_PROXY, proxy) if at_proxy else (_STORE, where)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return WrongServer(not_itself, where=where,
                           why=f"its certificate does not hold, {cause.verify_message}",
                           advice=f"Is the clock right? It is {rfc3339(int(time.time()))} here."
                           if cause.verify_code in _CLOCK_CODES else "")
    if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
        return WrongServer(not_tls, where=where, advice="Is it http:// and not https://?")
    if isinstance(cause, ssl.SSLError) and _NOT_OURS.search(cause.reason or ""):
        return Forbidden("a store refuses", where=where, why=_alert(cause.reason),
                         advice="client_cert of a remote names the certificate that it is shown.")
    if deadline.passed:
        return DeadlinePassed("a store did not answer in time", where=where, why="the deadline passed" + _by(proxy))
    return Unavailable(silent, where=where, why=_text_of(cause) + ("" if at_proxy else _by(proxy)))


def proxy_refuses(proxy: str, status: int, reason: str) -> ModelfsError:
    """The error of a proxy that hands nothing on: its own credentials, what it allows, or whom it does not reach."""
    why = f"HTTP {status} {_printable(reason)[:60]}".strip()
    if status == 407:
        return Forbidden("a proxy refuses", where=proxy, why=why,
                         advice="Its user and password stand in HTTPS_PROXY or HTTP_PROXY.")
    if 400 <= status < 500 and status not in (408, 429):
        return Forbidden("a proxy refuses", where=proxy, why=why, advice="NO_PROXY names who is asked without it.")
    return Unavailable("a proxy does not reach the store", where=proxy, why=why)


def _by(proxy: str) -> str:
    return f", by the proxy {proxy}" if proxy else ""


def _alert(reason: str) -> str:
    words = reason.lower().partition("alert_")[2].replace("_", " ")
    return f"TLS alert, {words}"


def _innermost(error: BaseException) -> BaseException:
    """requests and urllib3 wrap what the system said four times; people want the last of it."""
    seen = error
    for _ in range(10):
        inner = (seen.__cause__ or getattr(seen, "reason", None)
                 or next((a for a in seen.args if isinstance(a, BaseException)), None))
        if not isinstance(inner, BaseException):
            break
        seen = inner
    return seen


def _text_of(error: BaseException) -> str:
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return re.sub(r"<[^>]* at 0x[0-9a-f]+>:? ?", "", text)[:200] or type(error).__name__


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
