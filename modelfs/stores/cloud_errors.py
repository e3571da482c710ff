"""What obstore raises, as one of our errors.

Rule: only a status, a store's own code and its message are taken out of what it says: the rest holds URLs, which may
be signed, and bodies, which may hold what was signed.
"""

from __future__ import annotations

import re

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from modelfs.errors import (
    Forbidden,
    Malformed,
    ModelfsError,
    NoSpace,
    NotFound,
    ObjectMissing,
    Unavailable,
    WrongServer,
)
from modelfs.stores.cloud_access import NO_CREDENTIALS

_STATUS = re.compile(r"status code: ([0-9]{3})|\bstatus: ([0-9]{3})\b|\(code: ([0-9]{3})\)")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,80})</Code>")
_MESSAGE = re.compile(r'<Message>([^<]{1,300})|"message": ?"([^"]{1,300})"')
_CAUSES = re.compile(r'(?:message|error): "([^"]{1,200})"|kind: (?:TimedOut|Timeout)\b|operation timed out')
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "AccountLimitExceeded"})
_RETRY_STATUS = frozenset({408, 409, 425, 429})
_RETRY_CODES = frozenset({"SlowDown", "Throttling", "RequestTimeout", "TooManyRequests", "ServerBusy"})


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a store answered with, or None where it did not answer."""
    found = _STATUS.search(str(error))
    return int(found[1] or found[2] or found[3]) if found else None


def is_under_way(error: BaseException) -> bool:
    """Of a put that is refused because of what is there: whether that is another such put, which may yet fail. S3
    answers 409 to it, and 412 where there is an object; Azure 409 to both."""
    return status_of(error) == 409 and _found(_CODE, str(error)) != "BlobAlreadyExists"


def failure(error: Exception, where: str, credentials: str) -> ModelfsError:
    """credentials: what to tell who is refused about where they come from, without a secret.

    Retry-After is not among what obstore tells: whoever tries again waits as without one.
    """
    text = str(error)
    status, code = status_of(error), _found(_CODE, text)
    why = _why(status, code, _found(_MESSAGE, text))
    if NO_CREDENTIALS in text:
        return Forbidden("a store is not asked without credentials", where=where, advice=credentials,
                         why=text.split(NO_CREDENTIALS, 1)[1].split(maxsplit=1)[0].strip("\"'),"))
    if isinstance(error, FileNotFoundError) or status == 404:
        if code in _NO_BUCKET or (code is None and "bucket does not exist" in text):
            return NotFound("no such bucket", where=where, why=why, advice="Make it first, or check name and endpoint.")
        return ObjectMissing("an object is missing", where=where, why=why or "HTTP 404")
    if "redirect" in text.lower() and (status is None or 300 <= status < 400):
        return Forbidden("a store refuses", where=where, why="its bucket is in another region",
                         advice="Name it as region of the remote, or in AWS_REGION.")
    if status is None:
        return _no_answer(text, where)
    if status == 416:
        return Malformed("an object is too short", where=where, why="HTTP 416: it does not have the range")
    if status == 507 or code in _FULL:
        return NoSpace("an object cannot be written", where=where, why=why)
    if status == 501:
        return Forbidden("a store cannot do this", where=where, why=why)
    if status >= 500 or status in _RETRY_STATUS or code in _RETRY_CODES:
        return Unavailable("a store does not answer well", where=where, why=why)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return Forbidden("a store refuses", where=where, why=why, advice=credentials)
    if status >= 400:
        return Forbidden("a store refuses", where=where, why=why)
    return Unavailable("a store does not answer well", where=where, why=why)


def _no_answer(text: str, where: str) -> ModelfsError:
    """What is no HTTP status: names, connections, TLS, bodies that break off."""
    if "InvalidCertificate" in text or "invalid peer certificate" in text:
        return WrongServer("a store does not answer as itself", where=where, why="its certificate does not hold")
    if "InvalidContentType" in text or "InvalidMessage" in text:
        return WrongServer("a store does not answer with TLS", where=where, advice="Is its endpoint http:// and not https://?")
    cause = _CAUSES.search(text)
    why = (cause[1] or "it sent nothing for too long") if cause else ""
    head = text.split("\n", 1)[0].rsplit(" - ", 1)[-1].rsplit("error: ", 1)[-1]
    plain = "" if "://" in head else head[:120]
    return Unavailable("a store does not answer", where=where, why=why or plain or "its connection broke")


def _why(status: int | None, code: str | None, message: str | None) -> str:
    said = " ".join(part for part in (f"HTTP {status}" if status else "", code or "") if part)
    clean = "".join(char if char.isprintable() else " " for char in message or "").strip().rstrip(".")
    return f"{said}: {clean}" if said and clean else said or clean


def _found(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return next((group for group in found.groups() if group), None) if found else None
