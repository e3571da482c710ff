"""Two real S3 servers, SeaweedFS and moto's; boto3 as a second opinion of what they hold; a proxy that strips headers.

Rule: each server is started at most once a test process, on free ports of 127.0.0.1, and ends with that process however
it ends. Each test has a prefix of its own.
"""

from __future__ import annotations

import atexit
import functools
import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.config
from botocore.exceptions import BotoCoreError, ClientError
from servers import die_with_parent, end_server, free_ports

from modelfs.errors import ObjectMissing, SwapLost
from modelfs.stores.store import Buffer, ObjectInfo
from modelfs.units import Deadline

SERVERS = ("seaweedfs", "moto")
BUCKET, PUBLIC = "models", "public"
KEY_ID, SECRET = "AKIATESTER", "a-secret-that-no-message-shows"
# One request at a time: moto looks at conditions and writes in two steps, which S3 does in one.
_MOTO = """
import io, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
def one_at_a_time(environ, start):
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    with lock:
        return [b"".join(app(environ, start))]
server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""
_DIRECTORY = "modelfs-test-weed-"
_prefixes = itertools.count()


@functools.cache
def endpoint(server: str) -> str:
    """The server's URL; it has both buckets, and whoever asks may read PUBLIC."""
    url = _seaweedfs() if server == "seaweedfs" else _moto()
    end = time.monotonic() + 90
    for bucket in (BUCKET, PUBLIC):
        while True:
            try:
                client(url).create_bucket(Bucket=bucket)
                client(url).put_object(Bucket=bucket, Key="ready", Body=b"")
                break
            except (BotoCoreError, ClientError):  # it listens before it has all of its parts
                assert time.monotonic() < end, f"{server} does not answer"
                time.sleep(0.2)
    if server == "moto":
        client(url).put_bucket_acl(Bucket=PUBLIC, ACL="public-read")
    return url


def environ(server: str | None = None) -> dict[str, str]:
    """Variables that name a server and its credentials; the user's own are overridden."""
    files = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    own = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    return files | own | ({"AWS_ENDPOINT_URL": endpoint(server)} if server else {})


def client(url: str) -> Any:
    config = botocore.config.Config(request_checksum_calculation="when_required", retries={"max_attempts": 1},
                                    s3={"addressing_style": "path"}, response_checksum_validation="when_required")
    return boto3.client("s3", endpoint_url=url, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET,
                        region_name="us-east-1", config=config)


def new_prefix() -> str:
    return f"p{os.getpid()}/{next(_prefixes)}"


class Bucket:
    """What a prefix holds, by boto3: to fill it and to look at it past the store under test."""

    def __init__(self, url: str, prefix: str, bucket: str = BUCKET) -> None:
        self.client, self.bucket, self.prefix = client(url), bucket, prefix

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=bytes(data), **condition)
        except ClientError as error:
            if _status(error) != 412:
                raise
            return False
        return True

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            etag: str = self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=new,
                                               **condition)["ETag"]
        except ClientError as error:
            raise SwapLost(str(error)) from error
        return etag

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"].read()
        return body

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        try:
            head = self.client.head_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")
        except ClientError as error:
            raise ObjectMissing(key) from error
        return ObjectInfo(key, head["ContentLength"], head["LastModified"].timestamp())

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/{prefix}"):
            for each in page.get("Contents", ()):
                yield ObjectInfo(each["Key"].removeprefix(f"{self.prefix}/"), each["Size"])

    def delete(self, key: str, deadline: Deadline) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")

    def unfinished(self) -> list[str]:
        """Keys of multipart uploads that were begun, and neither completed nor aborted."""
        found = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())
        return [each["Key"] for each in found if each["Key"].startswith(self.prefix)]


class StrippingProxy(ThreadingHTTPServer):
    """In front of upstream, without the headers whose names begin with one of prefixes: what some servers do with
    conditions that they do not know."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, *prefixes: str) -> None:
        super().__init__(("127.0.0.1", 0), _Stripping)
        self.upstream, self.prefixes, self.seen = urlsplit(upstream).netloc, prefixes, list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that end early are none of a test's faults."""


class _Stripping(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StrippingProxy

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items()
                   if not name.lower().startswith(self.server.prefixes)}
        with closing(http.client.HTTPConnection(self.server.upstream, timeout=60)) as upstream:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            data = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            if answer.status not in (204, 304):
                self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = handle_any


@contextmanager
def stripping(upstream: str, *prefixes: str) -> Iterator[StrippingProxy]:
    proxy = StrippingProxy(upstream, *prefixes)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


def _seaweedfs() -> str:
    root = _directory()
    ports = free_ports(8)
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
             "s3.port", "s3.port.grpc")
    rights = [{"name": "anonymous", "actions": [f"Read:{PUBLIC}", f"List:{PUBLIC}"]},
              {"name": "tester", "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
               "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]
    (root / "s3.json").write_text(json.dumps({"identities": rights}))
    (root / "data").mkdir()
    program = Path(sys.executable).with_name("weed")
    with (root / "log").open("wb") as log:
        _start([str(program), "server", f"-dir={root / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
                f"-s3.config={root / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100",
                "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0", f"-filer.localSocket={root / 'filer.sock'}",
                *(f"-{name}={port}" for name, port in zip(names, ports, strict=True))], stdout=log)
    return f"http://127.0.0.1:{ports[6]}"


def _directory() -> Path:
    """For this process. Those of processes that have ended go: pytest-xdist's end without running exit handlers."""
    for left in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY}*-*"):
        if not Path("/proc", left.name.removeprefix(_DIRECTORY).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    made = tempfile.mkdtemp(prefix=f"{_DIRECTORY}{os.getpid()}-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def _moto() -> str:
    process = _start([sys.executable, "-c", _MOTO], stdout=subprocess.PIPE)
    assert process.stdout
    return f"http://127.0.0.1:{int(process.stdout.readline())}"


def _start(command: list[str], stdout: Any) -> subprocess.Popen[bytes]:
    """It is ended at this process's end; where that is killed, by the kernel."""
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
    atexit.register(end_server, process)
    return process


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
