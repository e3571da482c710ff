"""Azure Blob Storage for tests: Azurite, Microsoft's emulator, and Microsoft's own client to look past the store.

Rule: the server is started at most once a test process, on a free port of 127.0.0.1, keeps everything in memory, and
ends with that process however it ends. It comes from npm: `make .azurite/.installed` puts it into the repository.
"""

from __future__ import annotations

import atexit
import base64
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas
from servers import die_with_parent, end_server

from modelfs.errors import ObjectMissing, SwapLost
from modelfs.stores.store import Buffer, ObjectInfo
from modelfs.units import Deadline

CONTAINER, PUBLIC = "models", "public"
ACCOUNT = "tester"
KEY = base64.b64encode(b"a-key-that-no-message-shows").decode()
_PROGRAM = Path(__file__).parents[1] / ".azurite/node_modules/azurite/dist/src/blob/main.js"


@functools.cache
def endpoint() -> str:
    """The account's URL; both containers are there, and whoever asks may read PUBLIC."""
    assert _PROGRAM.exists(), f"{_PROGRAM} is missing: make .azurite/.installed"
    node = shutil.which("node") or "nodejs"
    process = subprocess.Popen(
        [node, str(_PROGRAM), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--silent",
         "--disableTelemetry", "--skipApiVersionCheck", "--disableProductStyleUrl"], preexec_fn=die_with_parent,
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True)
    atexit.register(end_server, process)
    assert process.stdout
    for line in process.stdout:
        if "successfully listens on" in line:
            url = f"{line.split()[-1]}/{ACCOUNT}"
            client(url).create_container(CONTAINER)
            client(url).create_container(PUBLIC, public_access="container")
            return url
    raise AssertionError(f"Azurite ended, {process.wait()}")


def environ() -> dict[str, str]:
    return {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint()}


def shared_access(permission: str) -> str:
    """A shared access signature for CONTAINER; permission: letters as Azure has them, "racwdl" for all."""
    return generate_container_sas(ACCOUNT, CONTAINER, account_key=KEY, expiry=datetime.now(UTC) + timedelta(hours=1),
                                  permission=ContainerSasPermissions.from_string(permission))


def client(url: str) -> BlobServiceClient:
    return BlobServiceClient(url, {"account_name": ACCOUNT, "account_key": KEY}, retry_total=0)


class Bucket:
    """What a prefix holds, by Microsoft's client: to fill it and to look at it past the store under test."""

    def __init__(self, prefix: str, container: str = CONTAINER) -> None:
        self.prefix = prefix
        self._container = client(endpoint()).get_container_client(container)

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        try:
            self._blob(key).upload_blob(bytes(data), overwrite=not only_if_absent)
        except ResourceExistsError:
            return False
        return True

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str:
        condition: dict[str, Any] = {"etag": expected, "match_condition": MatchConditions.IfNotModified}
        try:
            etag: str = self._blob(key).upload_blob(new, overwrite=expected is not None,
                                                    **(condition if expected else {}))["etag"]
        except HttpResponseError as error:
            raise SwapLost(str(error)) from error
        return etag

    def get(self, key: str) -> bytes:
        body: bytes = self._blob(key).download_blob().readall()
        return body

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        try:
            found = self._blob(key).get_blob_properties()
        except ResourceNotFoundError as error:
            raise ObjectMissing(key) from error
        return ObjectInfo(key, found.size, found.last_modified.timestamp())

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        for each in self._container.list_blobs(f"{self.prefix}/{prefix}"):
            yield ObjectInfo(each.name.removeprefix(f"{self.prefix}/"), each.size)

    def delete(self, key: str, deadline: Deadline) -> None:
        self._blob(key).delete_blob()

    def _blob(self, key: str) -> Any:
        return self._container.get_blob_client(f"{self.prefix}/{key}")
