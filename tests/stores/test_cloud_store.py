"""CloudStore where the contract ends: conditions that are ignored, uploads in parts, faults, credentials; against real
servers, with faults on the wire in front of them."""

from __future__ import annotations

import json
import logging
import os
import random
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3servers
from faultproxy import FaultProxy

from modelfs.errors import (
    BadInput,
    DeadlinePassed,
    Forbidden,
    Malformed,
    NotFound,
    ObjectMissing,
    SwapLost,
    Unavailable,
    WrongServer,
)
from modelfs.logs import Event
from modelfs.stores.cloud_access import CloudOptions
from modelfs.stores.cloud_store import CloudStore
from modelfs.units import Deadline, MiB

PACK = "packs/ab/ab" + "1" * 62
LARGE = random.Random(3).randbytes(40 * MiB + 17)  # more parts than are sent at once


def soon() -> Deadline:
    return Deadline(30)


@pytest.fixture(params=s3servers.SERVERS)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its URL; the environment has the credentials, and no endpoint."""
    for name, value in s3servers.environ().items():
        monkeypatch.setenv(name, value)
    return s3servers.endpoint(request.param)


@pytest.fixture
def prefix() -> str:
    return s3servers.new_prefix()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of moto, which does not look at signatures: a proxy has another Host than the one that was signed."""
    for name, value in s3servers.environ().items():
        monkeypatch.setenv(name, value)
    with FaultProxy(upstream=s3servers.endpoint("moto")) as proxy:
        yield proxy


def store_at(url: str, prefix: str, tell: Callable[[str], None] | None = None) -> CloudStore:
    return CloudStore(f"s3://{s3servers.BUCKET}/{prefix}", CloudOptions(url), tell=tell)


def read(store: CloudStore, key: str, offset: int, length: int, deadline: Deadline | None = None) -> bytes:
    out = bytearray(length)
    with store.open_range(key, offset, length, deadline or soon()) as stream:
        stream.readinto(memoryview(out))
    return bytes(out)


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_a_server_that_keeps_conditions_is_asked_once_and_nothing_of_that_is_left(server: str, prefix: str) -> None:
    said: list[str] = []
    with s3servers.stripping(server, "x-nothing") as proxy:
        store = store_at(proxy.url, prefix, said.append)
        etag = store.swap("catalog.json", None, b"one", soon())
        asked = [line for line in proxy.seen if "/probes/" in line]
        assert len(asked) == 5 and asked[-1].startswith("DELETE")
        store.swap("catalog.json", etag, b"two", soon())
        assert store.put(PACK, b"x", soon(), only_if_absent=True)
        assert len([line for line in proxy.seen if "/probes/" in line]) == 5
    assert not said
    assert sorted(info.key for info in s3servers.Bucket(server, prefix).list("", soon())) == ["catalog.json", PACK]


def test_a_server_that_ignores_conditions_has_one_writer_who_is_told_once(
        server: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    with s3servers.stripping(server, "if-") as proxy, caplog.at_level(logging.WARNING, "modelfs"):
        store = store_at(proxy.url, prefix, said.append)
        assert store.put("modelfs.json", b"first", soon(), only_if_absent=True) is True
        assert store.put("modelfs.json", b"second", soon(), only_if_absent=True) is False
        one = store.swap("catalog.json", None, b"one", soon())
        with pytest.raises(SwapLost):
            store.swap("catalog.json", None, b"two", soon())
        two = store.swap("catalog.json", one, b"two", soon())
        with pytest.raises(SwapLost):
            store.swap("catalog.json", one, b"three", soon())
        found = store.get("catalog.json", soon(), limit=10)
        assert found and (found.data, found.etag) == (b"two", two)
    bucket = s3servers.Bucket(server, prefix)
    assert (bucket.get("modelfs.json"), bucket.get("catalog.json")) == (b"first", b"two")
    assert sorted(info.key for info in bucket.list("", soon())) == ["catalog.json", "modelfs.json"]
    assert len(said) == 1 and "one host at a time" in said[0] and store.url in said[0]
    events = [record.modelfs_event for record in caplog.records if hasattr(record, "modelfs_event")]
    assert [event.name for event in events if isinstance(event, Event)] == ["store.single_writer"]


def test_who_may_not_write_is_refused_and_not_told_of_conditions(server: str, prefix: str) -> None:
    said: list[str] = []
    with FaultProxy(upstream=server) as proxy:
        proxy.add("status", code=403, methods=("PUT",))
        with pytest.raises(Forbidden):
            store_at(proxy.url, prefix, said.append).swap("catalog.json", None, b"one", soon())
    assert not said


def test_a_large_object_goes_up_in_parts_and_comes_back(server: str, prefix: str) -> None:
    store, bucket = store_at(server, prefix), s3servers.Bucket(server, prefix)
    store.put(PACK, memoryview(LARGE), soon())
    assert bucket.get(PACK) == LARGE
    head = bucket.client.head_object(Bucket=bucket.bucket, Key=f"{prefix}/{PACK}")
    assert head["ETag"].endswith('-6"'), "of six parts"
    assert read(store, PACK, 7 * MiB + 1, 16 * MiB) == LARGE[7 * MiB + 1:23 * MiB + 1]
    found = store.get(PACK, soon(), limit=len(LARGE))
    assert found and found.content == LARGE and found.etag == head["ETag"]
    assert not bucket.unfinished()


@pytest.mark.parametrize(("match", "method"), [("partNumber=2", "PUT"), ("partNumber=6", "PUT"), ("uploadId", "POST")])
def test_an_upload_in_parts_that_fails_leaves_nothing(faulty: FaultProxy, prefix: str, match: str, method: str) -> None:
    faulty.add("status", match=match, code=500, times=1, methods=(method,))
    store, bucket = store_at(faulty.url, prefix), s3servers.Bucket(s3servers.endpoint("moto"), prefix)
    with pytest.raises(Unavailable, match="HTTP 500"):
        store.put(PACK, LARGE, soon())
    assert not bucket.unfinished() and list(bucket.list("", soon())) == []
    store.put(PACK, LARGE, soon())
    assert bucket.get(PACK) == LARGE


def test_an_upload_that_is_given_up_at_its_deadline_is_aborted_once_its_stuck_part_ends(
        faulty: FaultProxy, prefix: str) -> None:
    faulty.add("stall_upload", match="partNumber=2", after=1000, times=1)
    store, bucket = store_at(faulty.url, prefix), s3servers.Bucket(s3servers.endpoint("moto"), prefix)
    with pytest.raises(DeadlinePassed):
        store.put(PACK, LARGE, Deadline(3))
    assert bucket.unfinished()
    faulty.clear()
    assert until(lambda: not bucket.unfinished())
    assert list(bucket.list("", soon())) == []


def test_the_parts_of_an_upload_renew_a_patience(faulty: FaultProxy, prefix: str) -> None:
    class Counted(Deadline):
        def moved(self, size_bytes: int) -> None:
            told.append(size_bytes)

    told: list[int] = []
    store_at(faulty.url, prefix).put(PACK, LARGE, Counted(30))
    assert told == [8 * MiB, 8 * MiB]


@pytest.mark.parametrize(("kind", "options"), [
    ("status", {"code": 503}), ("status", {"code": 500}), ("status", {"code": 429, "retry_after": "3"}), ("reset", {}),
    ("truncate", {"after": 3}), ("lost_answer", {}), ("encoding", {}),
])
def test_what_can_be_tried_again_is_unavailable(
        faulty: FaultProxy, prefix: str, kind: str, options: dict[str, object]) -> None:
    store = store_at(faulty.url, prefix)
    store.put(PACK, b"0123456789", soon())
    faulty.add(kind, methods=("GET",), **options)
    with pytest.raises(Unavailable):
        store.get(PACK, soon(), limit=100)
    with pytest.raises(Unavailable):
        read(store, PACK, 2, 5)


@pytest.mark.parametrize("kind", ["ignore_range", "wrong_range", "short_range"])
def test_another_range_than_the_one_asked_for_is_unavailable(faulty: FaultProxy, prefix: str, kind: str) -> None:
    store = store_at(faulty.url, prefix)
    store.put(PACK, b"0123456789", soon())
    faulty.add(kind, methods=("GET",))
    with pytest.raises(Unavailable):
        read(store, PACK, 2, 5)


def test_a_throttled_store_is_tried_again_with_what_it_says(faulty: FaultProxy, prefix: str) -> None:
    faulty.add("status", code=503)
    with pytest.raises(Unavailable, match="HTTP 503"):
        store_at(faulty.url, prefix).stat(PACK, soon())
    assert faulty.requests() == 1, "obstore itself tries nothing again"


def test_what_hangs_or_stalls_is_given_up_at_the_deadline(faulty: FaultProxy, prefix: str) -> None:
    store = store_at(faulty.url, prefix)
    data = random.Random(1).randbytes(3 * MiB)
    store.put(PACK, data, soon())
    rule = faulty.add("hang", methods=("HEAD", "GET"))
    with pytest.raises(DeadlinePassed):
        store.stat(PACK, Deadline(0.5))
    with pytest.raises(DeadlinePassed):
        store.get(PACK, Deadline(0.5), limit=4 * MiB)
    assert rule.hits == 2
    faulty.clear()
    faulty.add("stall", after=2 * MiB, methods=("GET",))
    with pytest.raises(DeadlinePassed):
        store.get(PACK, Deadline(1), limit=4 * MiB)
    out = bytearray(3 * MiB)
    with store.open_range(PACK, 0, 3 * MiB, Deadline(2)) as stream:
        stream.readinto(memoryview(out)[:MiB])
        with pytest.raises(DeadlinePassed):
            stream.readinto(memoryview(out)[MiB:])
    assert out[:MiB] == data[:MiB]


def test_a_stream_that_breaks_off_is_unavailable_after_the_bytes_that_came(faulty: FaultProxy, prefix: str) -> None:
    store = store_at(faulty.url, prefix)
    data = random.Random(2).randbytes(3 * MiB)
    store.put(PACK, data, soon())
    faulty.add("truncate", after=2 * MiB, times=1, methods=("GET",))
    out = bytearray(3 * MiB)
    with store.open_range(PACK, 0, 3 * MiB, soon()) as stream:
        stream.readinto(memoryview(out)[:MiB])
        with pytest.raises(Unavailable):
            stream.readinto(memoryview(out)[MiB:])
    assert out[:MiB] == data[:MiB]
    faulty.add("reset", after=2 * MiB, methods=("GET",))  # which takes along what had come and was not read yet
    with pytest.raises(Unavailable):
        read(store, PACK, 0, 3 * MiB)


def test_a_stream_whose_reader_comes_late_has_all_its_bytes(server: str, prefix: str) -> None:
    store = store_at(server, prefix)
    data = LARGE[:16 * MiB]
    store.put(PACK, data, soon())
    out = bytearray(16 * MiB)
    with store.open_range(PACK, 0, 16 * MiB, soon()) as late:
        for _ in range(3):
            assert read(store, PACK, 0, 16 * MiB) == data
        for start in range(0, 16 * MiB, 3 * MiB):
            late.readinto(memoryview(out)[start:start + 3 * MiB])
    assert out == data


def test_an_object_that_is_too_large_is_not_read(faulty: FaultProxy, prefix: str) -> None:
    store = store_at(faulty.url, prefix)
    store.put(PACK, random.Random(1).randbytes(8 * MiB), soon())
    faulty.add("stall", after=1000, methods=("GET",))  # whoever reads it to its end waits for ever
    with pytest.raises(Malformed, match="at most 100 bytes"):
        store.get(PACK, soon(), limit=100)


def test_a_bucket_that_is_not_there_is_said_to_be(server: str) -> None:
    store = CloudStore("s3://no-such-bucket/x", CloudOptions(server))
    with pytest.raises(NotFound, match="no such bucket"):
        store.get(PACK, soon(), limit=1)
    if server == s3servers.endpoint("moto"):  # SeaweedFS makes a bucket for who writes to it and may
        for call in (lambda: store.put(PACK, b"x", soon()), lambda: store.swap("catalog.json", None, b"x", soon()),
                     lambda: list(store.list("", soon()))):
            with pytest.raises(NotFound, match="no such bucket"):
                call()
    with pytest.raises((NotFound, ObjectMissing)):
        store.stat(PACK, soon())


def test_a_wrong_secret_is_forbidden_and_no_message_shows_it(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3servers.environ("seaweedfs").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter3hunter3")
    store = CloudStore(f"s3://{s3servers.BUCKET}/{prefix}")
    for call in (lambda: store.get(PACK, soon(), limit=1), lambda: store.put(PACK, b"x", soon()),
                 lambda: store.swap("catalog.json", None, b"x", soon()), lambda: store.stat(PACK, soon())):
        with pytest.raises(Forbidden, match="AWS_ACCESS_KEY_ID") as caught:
            call()
        assert "hunter" not in str(caught.value)
    assert "hunter" not in store.url + repr(vars(store))


def test_a_public_bucket_is_read_without_credentials_and_others_are_not(monkeypatch: pytest.MonkeyPatch,
                                                                       prefix: str) -> None:
    url = s3servers.endpoint("seaweedfs")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    for bucket in (s3servers.PUBLIC, s3servers.BUCKET):
        s3servers.Bucket(url, prefix, bucket).put(PACK, b"0123456789", soon())
    for options in (CloudOptions(url), CloudOptions(url, anonymous=True)):
        public = CloudStore(f"s3://{s3servers.PUBLIC}/{prefix}", options)
        assert read(public, PACK, 3, 4) == b"3456"
        with pytest.raises(Forbidden, match="without credentials"):
            public.put(PACK, b"x", soon())
        with pytest.raises(Forbidden, match="without credentials"):
            CloudStore(f"s3://{s3servers.BUCKET}/{prefix}", options).stat(PACK, soon())


def test_a_profile_in_the_usual_files_is_used(monkeypatch: pytest.MonkeyPatch, prefix: str, tmp_path: Path) -> None:
    url, files = s3servers.endpoint("seaweedfs"), tmp_path
    bucket = s3servers.Bucket(url, prefix)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (files / "config").write_text(f"[profile lab]\nregion = eu-central-1\nendpoint_url = {url}\n")
    (files / "credentials").write_text(f"[lab]\naws_access_key_id = {s3servers.KEY_ID}\n"
                                       f"aws_secret_access_key={s3servers.SECRET}\n[other]\naws_access_key_id=x\n")
    for name, value in (("AWS_PROFILE", "lab"), ("AWS_CONFIG_FILE", str(files / "config")),
                        ("AWS_SHARED_CREDENTIALS_FILE", str(files / "credentials"))):
        monkeypatch.setenv(name, value)
    store = CloudStore(f"s3://{s3servers.BUCKET}/{prefix}")
    store.put(PACK, b"0123456789", soon())
    assert bucket.get(PACK) == b"0123456789"
    assert store.url == f"s3://{s3servers.BUCKET}/{prefix}?endpoint={url}"


def test_a_credential_process_is_run_by_boto3_and_its_failure_is_said(monkeypatch: pytest.MonkeyPatch, prefix: str,
                                                                    tmp_path: Path) -> None:
    url = s3servers.endpoint("seaweedfs")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "said").write_text(json.dumps({"Version": 1, "AccessKeyId": s3servers.KEY_ID,
                                               "SecretAccessKey": s3servers.SECRET}))
    (tmp_path / "config").write_text(f"[profile lab]\ncredential_process = cat {tmp_path / 'said'}\n"
                                     "[profile broken]\ncredential_process = echo hunter2\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = store_at(url, prefix)
    store.put(PACK, b"0123456789", soon())
    assert read(store, PACK, 3, 4) == b"3456"
    monkeypatch.setenv("AWS_PROFILE", "broken")
    with pytest.raises(Forbidden, match=r"JSONDecodeError.*profile broken") as caught:
        store_at(url, prefix).stat(PACK, soon())
    assert "hunter2" not in str(caught.value)


def test_nobody_at_the_endpoint_is_unavailable_with_the_reason(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    for url, why in (("http://127.0.0.1:1", "refused"), ("http://no-such-host.invalid", "lookup|resolve|name")):
        with pytest.raises(Unavailable, match=why):
            CloudStore("s3://bucket/x", CloudOptions(url)).stat(PACK, soon())
    with pytest.raises(WrongServer):
        CloudStore("s3://bucket/x", CloudOptions(server.replace("http:", "https:"))).stat(PACK, soon())


def test_a_certificate_is_checked_and_aws_ca_bundle_names_who_may_sign_it(
        monkeypatch: pytest.MonkeyPatch, prefix: str, tmp_path: Path) -> None:
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", tmp_path / "key", "-out", tmp_path / "cert", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    for name, value in s3servers.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with FaultProxy(upstream=s3servers.endpoint("moto"), tls=context) as secure:
        with pytest.raises(WrongServer, match="certificate"):
            store_at(secure.url, prefix).put(PACK, b"x", soon())
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert"))
        store_at(secure.url, prefix).put(PACK, b"0123456789", soon())
        assert read(store_at(secure.url, prefix), PACK, 3, 4) == b"3456"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing"))
    with pytest.raises(BadInput, match="AWS_CA_BUNDLE"):
        CloudStore("s3://bucket/x")


def test_settings_that_are_none_are_refused_without_repeating_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", '{"private_key": "hunter2"')
    with pytest.raises(BadInput) as caught:
        CloudStore("gs://bucket/x")
    assert "hunter2" not in str(caught.value)


def test_threads_of_a_store_take_no_signals(server: str, prefix: str) -> None:
    """A signal that is delivered to one of them does not wake the main thread out of the kernel."""
    before = {thread.native_id for thread in threading.enumerate()} | set(map(int, os.listdir("/proc/self/task")))
    store = store_at(server, prefix)
    store.put(PACK, b"x", soon())
    new = set(map(int, os.listdir("/proc/self/task"))) - before
    assert new
    for task in new:
        with open(f"/proc/self/task/{task}/status") as status:
            blocked = next(line.split()[1] for line in status if line.startswith("SigBlk"))
        assert int(blocked, 16) & (1 << 14), "SIGTERM"


def test_a_process_that_ends_right_after_an_answer_ends_well(server: str, prefix: str) -> None:
    """Without what cloud_calls does at the end, every eighth is aborted by Rust."""
    store_at(server, prefix).put(PACK, b"x", soon())
    code = ("import sys; from modelfs.units import Deadline\n"
            "from modelfs.stores.cloud_store import CloudStore, CloudOptions\n"
            f"store = CloudStore('s3://{s3servers.BUCKET}/{prefix}', CloudOptions(sys.argv[1]))\n"
            f"for _ in range(3): store.stat('{PACK}', Deadline(20))")
    codes: list[int] = []

    def work() -> None:
        for _ in range(6):
            codes.append(subprocess.run([sys.executable, "-c", code, server], check=False,
                                        cwd=Path(__file__).parents[2]).returncode)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert codes == [0] * 24
