"""Where an object store is and who asks it: s3://, gs:// and az:// URLs, endpoints, regions, credentials.

Rule: nothing is asked of the network here, and an instance's metadata server is believed in only where the firmware
says that the machine is one of that cloud: elsewhere each first request would wait for it in vain. No secret leaves
this module but to obstore.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

from modelfs.errors import BadInput

Scheme = Literal["s3", "gs", "az"]
SCHEMES: tuple[Scheme, ...] = ("s3", "gs", "az")
NO_CREDENTIALS = "modelfs has no credentials: "
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,220}")
_PREFIX_PART = re.compile(r"[^\x00-\x20\x7f%?#*,\\\"'<>|\[\]{}^`~]{1,200}")
_LONGEST_PREFIX = 500
_FIRMWARE = Path("/sys/class/dmi/id")
_AZURE = "core.windows.net"
_REREAD = timedelta(minutes=15)
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_ELSEWHERE = ("role_arn", "credential_process", "sso_session", "sso_start_url", "web_identity_token_file")


@dataclass(frozen=True, slots=True)
class CloudOptions:
    """What a remote says of an object store; None: what the environment says. moved_elsewhere: the catalog is changed
    in etcd, so that a store that ignores conditions may have several writers."""

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    moved_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """prefix: without slashes at its ends, empty for the whole bucket."""

    scheme: Scheme
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


@dataclass(frozen=True, slots=True)
class Access:
    """config: of obstore's store. credentials: what to tell who is refused about where they come from. endpoint: None
    for the cloud's own. authorities: a file of certificates to trust beside the system's."""

    config: dict[str, Any] = field(repr=False)
    credentials: str
    endpoint: str | None
    provider: Callable[[], Any] | None = field(default=None, repr=False)
    authorities: Path | None = None


def parse_place(spec: str) -> Place:
    """Of s3://bucket/prefix, gs://… or az://container/prefix. Raises BadInput."""
    scheme, _, rest = spec.partition("://")
    bucket, _, path = rest.partition("/")
    if "@" in bucket:
        raise BadInput("a URL holds credentials", where=f"{scheme}://", advice="Set them in the environment instead.")
    prefix = path.strip("/")
    parts = prefix.split("/") if prefix else []
    if scheme.lower() not in SCHEMES or not _BUCKET.fullmatch(bucket) or len(prefix) > _LONGEST_PREFIX or not all(
            _PREFIX_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise BadInput(f"not a URL of an object store {spec[:200]!r}",
                       why="write it like s3://bucket/prefix, without blanks and none of ?#%*,~ or quotes and brackets")
    return Place(cast(Scheme, scheme.lower()), bucket, prefix)


def access_to(place: Place, options: CloudOptions, environ: Mapping[str, str] | None = None,
              firmware: Path = _FIRMWARE) -> Access:
    """environ: this process's, which obstore reads, too. firmware: where the kernel tells of the machine.

    Raises BadInput.
    """
    environ = os.environ if environ is None else environ
    find = {"s3": _aws, "gs": _google, "az": _azure}[place.scheme]
    return find(options, environ, _cloud_of(firmware) == place.scheme)


def _aws(options: CloudOptions, environ: Mapping[str, str], here: bool) -> Access:
    """The order is that of AWS's own tools, as far as it goes."""
    profile = _Profile(environ)
    keys = profile.read()
    endpoint = (options.endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
                or environ.get("AWS_ENDPOINT") or keys.get("endpoint_url"))
    region = (options.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
              or keys.get("region") or "us-east-1")
    bundle = environ.get("AWS_CA_BUNDLE") or keys.get("ca_bundle")
    config: dict[str, Any] = {"region": region, "disable_bulk_delete": True}
    if endpoint:
        config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}

    def found(credentials: str, provider: Callable[[], Any] | None = None, **more: Any) -> Access:
        return Access(config | more, credentials, endpoint, provider, Path(bundle) if bundle else None)

    if options.anonymous or _true(environ.get("AWS_SKIP_SIGNATURE")):
        return found("It was asked without credentials, as configured.", skip_signature=True)
    if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
        return found("It was asked with the key in AWS_ACCESS_KEY_ID.")
    if not profile.chosen and environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") and environ.get("AWS_ROLE_ARN"):
        return found("It was asked as AWS_ROLE_ARN, by the token in AWS_WEB_IDENTITY_TOKEN_FILE.")
    if _KEYS[0] in keys and _KEYS[1] in keys:
        return found(f"It was asked with the key of {profile.told}.", profile.credential)
    if any(key in keys for key in _ELSEWHERE):
        return found(f"It was asked with what {profile.told} leads to.", _ByBoto3(profile))
    if profile.chosen:
        raise BadInput(f"no credentials in {profile.told}", why="it has no aws_access_key_id and aws_secret_access_key")
    if environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") or environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        return found("It was asked with the credentials of this container's role.")
    asked = environ.get("AWS_METADATA_ENDPOINT") or here
    if asked and not _true(environ.get("AWS_EC2_METADATA_DISABLED")):
        return found("It was asked with the credentials of this instance's role; `anonymous = true` of a remote asks "
                     "without.")
    return found("It was asked without credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
                 skip_signature=True)


class _Profile:
    """The profile that AWS_PROFILE names, or default: both files' keys, those of the credentials file first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.chosen = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or ""
        home = Path(environ.get("HOME") or "~").expanduser()
        self._credentials = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
        self._config = Path(environ.get("AWS_CONFIG_FILE") or home / ".aws" / "config")
        self.name = self.chosen or "default"
        self.told = f"the profile {self.name} in {self._credentials} and {self._config}"

    def read(self) -> dict[str, str]:
        """Empty where there is no default profile. Raises BadInput."""
        section = self.name if self.name == "default" else f"profile {self.name}"
        both = [_section(self._config, section), _section(self._credentials, self.name)]
        if self.chosen and both == [None, None]:
            raise BadInput(f"no profile {self.name}", why=f"neither {self._credentials} nor {self._config} has it",
                           advice="Check AWS_PROFILE.")
        return {key: value for part in both for key, value in (part or {}).items()}

    def credential(self) -> dict[str, Any]:
        """As obstore wants it; asked again from time to time, so that a file that is renewed is seen."""
        keys = self.read()
        return {"access_key_id": keys[_KEYS[0]], "secret_access_key": keys[_KEYS[1]],
                "token": keys.get(_KEYS[2]), "expires_at": datetime.now(UTC) + _REREAD}


def _section(file: Path, section: str) -> dict[str, str] | None:
    """None where the file or the section is not there. Raises BadInput, without what the file says."""
    import configparser  # which those who use no profile do without

    parser = configparser.RawConfigParser(default_section="\0none", strict=False)
    try:
        with file.open(encoding="utf-8") as stream:
            parser.read_file(stream)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise BadInput("cannot read AWS's configuration", where=str(file), why=type(error).__name__) from None
    return {key: value.strip() for key, value in parser.items(section)} if parser.has_section(section) else None


class _ByBoto3:
    """Roles, SSO and credential processes are boto3's: 0.3 s of imports for those who need them, and nobody else, at
    the first request, in a thread that is not waited for longer than that."""

    def __init__(self, profile: _Profile) -> None:
        """Raises BadInput where boto3 is not installed."""
        self._profile, self._provider = profile.name, cast(Any, None)
        if find_spec("boto3") is None:
            raise BadInput(f"cannot use {profile.told}", why="a role, SSO or a credential process needs boto3",
                           advice="pip install boto3")

    def __call__(self) -> Any:
        try:
            if self._provider is None:
                import boto3
                from obstore.auth.boto3 import Boto3CredentialProvider
                self._provider = Boto3CredentialProvider(boto3.Session(profile_name=self._profile))
            return self._provider()
        except Exception as error:  # botocore's have no common base but this; it passes through obstore, as text
            raise RuntimeError(f"{NO_CREDENTIALS}{type(error).__name__}") from None


def _google(options: CloudOptions, environ: Mapping[str, str], here: bool) -> Access:
    """STORAGE_EMULATOR_HOST is where Google's own clients look, which ask that without credentials."""
    emulator = environ.get("STORAGE_EMULATOR_HOST") or ""
    named_endpoint = options.endpoint or environ.get("GOOGLE_BASE_URL")
    endpoint = (named_endpoint or (emulator if "://" in emulator or not emulator else f"http://{emulator}")).rstrip("/")
    config: dict[str, Any] = {"base_url": endpoint} if endpoint else {}

    def without(credentials: str) -> Access:
        return Access(config | {"skip_signature": True}, credentials, endpoint or None, _no_token)

    if options.anonymous or _true(environ.get("GOOGLE_SKIP_SIGNATURE")):
        return without("It was asked without credentials, as configured.")
    if emulator and not named_endpoint:
        return without("It was asked without credentials, as STORAGE_EMULATOR_HOST is.")
    usual = Path(environ.get("HOME") or "~").expanduser() / ".config/gcloud/application_default_credentials.json"
    named = next((name for name in (
        "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN") if environ.get(name)), None)
    if named or usual.is_file():
        return Access(config, f"It was asked with the credentials in {named or usual}.", endpoint or None)
    if here:
        return Access(config, "It was asked with the credentials of this instance; `anonymous = true` of a remote asks "
                              "without.", endpoint or None)
    return without("It was asked without credentials: set GOOGLE_APPLICATION_CREDENTIALS.")


def _no_token() -> dict[str, Any]:
    """obstore has no writes without a token: without one at hand it would ask a metadata server for it, which a
    machine elsewhere waits for in vain. Google answers to this one that it is none."""
    return {"token": "none", "expires_at": None}


def _azure(options: CloudOptions, environ: Mapping[str, str], here: bool) -> Access:
    account = environ.get("AZURE_STORAGE_ACCOUNT_NAME") or environ.get("AZURE_STORAGE_ACCOUNT")
    told = {} if account else _connection(environ.get("AZURE_STORAGE_CONNECTION_STRING") or "")
    account = account or told.get("accountname")
    endpoint = (options.endpoint or environ.get("AZURE_STORAGE_ENDPOINT") or environ.get("AZURE_ENDPOINT")
                or _blob_endpoint(told))
    endpoint = endpoint.rstrip("/") if endpoint else None
    config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    emulated = _true(environ.get("AZURE_STORAGE_USE_EMULATOR"))
    if not account and not emulated:
        raise BadInput("no storage account", where="az://", advice="Set AZURE_STORAGE_ACCOUNT_NAME or "
                       "AZURE_STORAGE_CONNECTION_STRING.")
    if account:
        config["account_name"] = account
    if options.anonymous or _true(environ.get("AZURE_SKIP_SIGNATURE")):
        return Access(config | {"skip_signature": True}, "It was asked without credentials, as configured.", endpoint)
    if "accountkey" in told or "sharedaccesssignature" in told:
        return Access(config | ({"account_key": told["accountkey"]} if "accountkey" in told else
                                {"sas_key": told["sharedaccesssignature"]}),
                      "It was asked with what AZURE_STORAGE_CONNECTION_STRING has.", endpoint)
    if not environ.get("AZURE_STORAGE_ACCOUNT_KEY") and environ.get("AZURE_STORAGE_KEY"):  # as Azure's CLI calls it
        return Access(config | {"account_key": environ["AZURE_STORAGE_KEY"]},
                      "It was asked with the key in AZURE_STORAGE_KEY.", endpoint)
    named = next((name for name in (
        "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_STORAGE_USE_AZURE_CLI", "AZURE_USE_AZURE_CLI", "IDENTITY_ENDPOINT") if environ.get(name)), None)
    if named or emulated or here:
        return Access(config, f"It was asked with the credentials in {named}." if named else
                      "It was asked with the credentials of this machine.", endpoint)
    return Access(config | {"skip_signature": True}, "It was asked without credentials: set "
                  "AZURE_STORAGE_ACCOUNT_KEY.", endpoint)


def _connection(text: str) -> dict[str, str]:
    """What a connection string of Azure's portal says, keys in small letters. A key's value may hold further `=`."""
    parts = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, _, value in parts if value}


def _blob_endpoint(told: Mapping[str, str]) -> str | None:
    suffix = told.get("endpointsuffix", _AZURE)
    if "blobendpoint" in told or suffix == _AZURE or "accountname" not in told:
        return told.get("blobendpoint")
    return f"{told.get('defaultendpointsprotocol', 'https')}://{told['accountname']}.blob.{suffix}"


def _cloud_of(firmware: Path) -> Scheme | None:
    """Whose instance this machine is, as cloud-init tells it: a file's word, which costs no wait."""
    if _word(firmware / "chassis_asset_tag") == "7783-7084-3265-9085-8269-3286-77":
        return "az"
    if _word(firmware / "product_name") in ("Google", "Google Compute Engine"):
        return "gs"
    if _word(firmware / "sys_vendor") == "Amazon EC2" or "amazon" in _word(firmware / "bios_version"):
        return "s3"
    return None


def _word(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true", "yes", "on")
