"""Certificates made for a test, and a real nginx that shows and asks for them, in front of another server.

Rule: each authority is a new one, which nobody trusts who was not told to; nginx answers when it is handed out, and is
ended afterwards.
"""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mount.mounting import until
from servers import listens

HERE = ("127.0.0.1", "localhost")
_SIGNS = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # certificates and their lists
_DAY = datetime.timedelta(days=1)
_NGINX = """
{user}daemon off; worker_processes 1; pid {scratch}/pid; error_log {scratch}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format shown '$connection $ssl_client_serial $request_method $uri $status'; access_log {scratch}/access.log shown;
  client_body_temp_path {scratch}; proxy_temp_path {scratch}; fastcgi_temp_path {scratch}; uwsgi_temp_path {scratch};
  scgi_temp_path {scratch}; client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {shown.cert}; ssl_certificate_key {shown.key};
    {asks}
    location / {{ proxy_pass {upstream}; proxy_http_version 1.1; proxy_request_buffering off; }}
    {more}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate and its key, in PEM files."""

    cert: Path
    key: Path
    serial: int


class Authority:
    """Signs what it is asked to. ca: its own certificate's file."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(exist_ok=True)
        self._directory, self._name = directory, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        now = datetime.datetime.now(datetime.UTC)
        made = (x509.CertificateBuilder().subject_name(self._name).issuer_name(self._name)
                .public_key(self._key.public_key()).serial_number(x509.random_serial_number())
                .not_valid_before(now - _DAY).not_valid_after(now + _DAY)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
                .add_extension(_SIGNS, critical=True)
                .sign(self._key, hashes.SHA256()))
        self.ca = directory / f"{name}.pem"
        self.ca.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, hosts: Sequence[str] = HERE, *, days: tuple[int, int] = (-1, 1)) -> Shown:
        """For a server or a client; good from and until so many days from now. Files are replaced by a rename."""
        now = datetime.datetime.now(datetime.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        made = (x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
                .issuer_name(self._name).public_key(key.public_key()).serial_number(serial)
                .not_valid_before(now + days[0] * _DAY).not_valid_after(now + days[1] * _DAY)
                .add_extension(x509.SubjectAlternativeName([_named(host) for host in hosts]), critical=False)
                .add_extension(self._key_id, critical=False).sign(self._key, hashes.SHA256()))
        shown = Shown(self._directory / f"{name}.pem", self._directory / f"{name}.key", serial)
        replace(shown.key, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                             serialization.NoEncryption()))
        replace(shown.cert, made.public_bytes(serialization.Encoding.PEM))
        return shown


def replace(path: Path, content: bytes) -> None:
    """By a rename, and for its owner only."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(content)
    beside.chmod(0o600)
    beside.rename(path)


def server_context(shown: Shown, *, clients: Path | None = None) -> ssl.SSLContext:
    """Of a server in this process. clients: of which authority certificates of clients are asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.cert, shown.key)
    if clients:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass(frozen=True, slots=True)
class TlsServer:
    """log: "CONNECTION SERIAL METHOD /path STATUS" a request, soon after its answer; - where nothing was shown."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def seen(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()]

    def serials(self) -> list[int | None]:
        return [None if words[1] == "-" else int(words[1], 16) for words in self.seen()]


@contextmanager
def tls_nginx(scratch: Path, upstream: str, shown: Shown, *, clients: Path | None = None, optional: bool = False,
              more: str = "") -> Iterator[TlsServer]:
    """clients: of which authority certificates of clients are asked for; optional: and are not needed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    assert program, "nginx is not installed: apt-get install nginx-light, or run `make test`, which does"
    scratch.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asks = f"ssl_client_certificate {clients}; ssl_verify_client {'optional' if optional else 'on'};" if clients else ""
    # as root its workers would be another user, who may not enter the tests' directories (0700)
    user = "user root; " if os.geteuid() == 0 else ""
    conf, log = scratch / "nginx.conf", scratch / "error.log"
    conf.write_text(_NGINX.format(scratch=scratch, port=port, upstream=upstream, shown=shown, asks=asks, user=user,
                                  more=more))
    process = subprocess.Popen([program, "-p", str(scratch), "-c", str(conf), "-e", str(log)])
    try:
        until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield TlsServer(f"https://127.0.0.1:{port}", scratch / "access.log", process)
    finally:
        process.terminate()
        process.wait(15)


def _named(host: str) -> x509.GeneralName:
    return x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
