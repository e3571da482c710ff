"""Every object store that tests run against, by name: where a repository in it is, and what leads there.

Rule: nothing is started before a test asks for it.
"""

from __future__ import annotations

import azureservers
import gcsservers
import s3servers

SERVERS = (*s3servers.SERVERS, "azurite", "fake-gcs-server")
new_prefix = s3servers.new_prefix
Bucket = s3servers.Bucket | azureservers.Bucket | gcsservers.Bucket


def url(server: str, prefix: str) -> str:
    match server:
        case "azurite":
            return f"az://{azureservers.CONTAINER}/{prefix}"
        case "fake-gcs-server":
            return f"gs://{gcsservers.BUCKET}/{prefix}"
        case _:
            return f"s3://{s3servers.BUCKET}/{prefix}"


def endpoint(server: str) -> str:
    match server:
        case "azurite":
            return azureservers.endpoint()
        case "fake-gcs-server":
            return gcsservers.endpoint()
        case _:
            return s3servers.endpoint(server)


def endpoint_variable(server: str) -> str:
    return {"azurite": "AZURE_STORAGE_ENDPOINT", "fake-gcs-server": "STORAGE_EMULATOR_HOST"}.get(
        server, "AWS_ENDPOINT_URL")


def environ(server: str) -> dict[str, str]:
    """Variables that name a server and its credentials."""
    match server:
        case "azurite":
            return azureservers.environ()
        case "fake-gcs-server":
            return gcsservers.environ()
        case _:
            return s3servers.environ(server)


def bucket(server: str, prefix: str) -> Bucket:
    match server:
        case "azurite":
            return azureservers.Bucket(prefix)
        case "fake-gcs-server":
            return gcsservers.Bucket(prefix)
        case _:
            return s3servers.Bucket(s3servers.endpoint(server), prefix)
