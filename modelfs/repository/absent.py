"""What stands where a repository was looked for and there is none, so that the message can say it.

Rule: this explains an answer that was given already; apart from a page of the Hugging Face hub, which never
is a repository, it decides nothing, and it asks the network for nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelfs.errors import NotFound
from modelfs.stores.cloud_access import SCHEMES

_HUBS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_KINDS = frozenset({"datasets", "spaces"})
_INIT = "`modelfs init` makes one."


def refuse_hub_page(url: str) -> None:
    """Raises NotFound for the address of a model's page on the Hugging Face hub.

    Files of a hub repository, which may well hold one of ours, have /resolve/ in their address.
    """
    parts = urlsplit(url)
    path = [part for part in parts.path.split("/") if part]
    if parts.hostname in _HUBS and "resolve" not in path[(3 if path[:1] and path[0] in _KINDS else 2):]:
        raise NotFound("no modelfs repository", where=url, why="it is a page of the Hugging Face hub",
                       advice="Download the model and `modelfs push` its directory.")


def no_repository(url: str, found: bytes | None) -> NotFound:
    """The error for a store at url without a repository.

    found: what it gave for modelfs.json, which is no JSON, or None where it has none.
    """
    why, advice = _found_at(url, found)
    return NotFound("no modelfs repository", where=url, why=why, advice=advice)


def is_web_page(data: bytes) -> bool:
    """What servers send, with status 200, for whatever they do not know."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--"))


def _found_at(url: str, found: bytes | None) -> tuple[str, str]:
    parts = urlsplit(url)
    if found is not None:
        return "it answers with a web page where modelfs.json would be", "Check the address."
    if parts.scheme in SCHEMES:
        return "it has no modelfs.json", f"Check bucket and prefix; {_INIT[:-1]} there."
    if parts.scheme != "file":
        return "it has no modelfs.json (HTTP 404)", "Check the address; a repository's has modelfs.json below it."
    path = Path(unquote(parts.path))
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return "there is no such directory", f"{_INIT[:-1]} there."
    except NotADirectoryError:
        return "it is a file", "Name the directory of a repository."
    except OSError as error:
        return f"it cannot be listed ({error.strerror})", "Check who may read it."
    if not names:
        return "the directory is empty", f"{_INIT[:-1]} there."
    some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (f"the directory has no modelfs.json, but {len(names)} other {'entry' if len(names) == 1 else 'entries'} "
            f"({some})", "Name the repository; `modelfs push` stores such a directory in one.")
