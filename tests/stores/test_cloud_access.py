"""Which credentials an object store is asked with: the usual places, in the usual order, told without a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelfs.errors import BadInput
from modelfs.stores.cloud_access import Access, CloudOptions, access_to, parse_place

S3, GS, AZ = (parse_place(f"{scheme}://bucket/x") for scheme in ("s3", "gs", "az"))
KEYS = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "hunter2"}
NOTHING = CloudOptions()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".aws").mkdir()
    return tmp_path


def found(place: object, home: Path, environ: dict[str, str] | None = None, options: CloudOptions = NOTHING,
          firmware: str | None = None) -> Access:
    """firmware: "vendor" or "product", as the machine's says."""
    directory = home / "dmi"
    directory.mkdir(exist_ok=True)
    for name, text in (("sys_vendor", "Amazon EC2"), ("product_name", "Google Compute Engine"),
                       ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77")):
        (directory / name).write_text(f"{text}\n" if name == firmware else "Laptop Inc.\n")
    access = access_to(place, options, {"HOME": str(home), **(environ or {})}, directory)  # type: ignore[arg-type]
    assert "hunter2" not in repr(access) + access.credentials
    return access


def test_keys_of_the_environment_come_first(home: Path) -> None:
    (home / ".aws" / "credentials").write_text("[default]\naws_access_key_id=x\naws_secret_access_key=hunter2\n")
    access = found(S3, home, KEYS)
    assert "AWS_ACCESS_KEY_ID" in access.credentials and access.provider is None
    assert "skip_signature" not in access.config


@pytest.mark.parametrize("environ", [{}, {"AWS_PROFILE": "lab"}])
def test_a_profile_is_read_from_both_files_and_read_again_when_asked_again(home: Path, environ: dict[str, str]) -> None:
    name = environ.get("AWS_PROFILE", "default")
    section = "default" if name == "default" else f"profile {name}"
    (home / ".aws" / "config").write_text(f"[{section}]\nregion = eu-central-1\nendpoint_url = http://h:1\n"
                                          "s3 =\n  max_concurrent_requests = 20\n")
    credentials = home / ".aws" / "credentials"
    credentials.write_text(f"[{name}]\naws_access_key_id = A\naws_secret_access_key = hunter2%x\n"
                           "aws_session_token = t\n")
    access = found(S3, home, environ)
    assert access.config["region"] == "eu-central-1" and access.endpoint == "http://h:1"
    assert access.provider
    assert {key: value for key, value in access.provider().items() if key != "expires_at"} == {
        "access_key_id": "A", "secret_access_key": "hunter2%x", "token": "t"}
    assert str(credentials) in access.credentials and f"profile {name}" in access.credentials
    credentials.write_text(f"[{name}]\naws_access_key_id = B\naws_secret_access_key = hunter2\n")
    assert access.provider()["access_key_id"] == "B"


def test_a_profile_that_is_named_must_be_there_and_have_credentials(home: Path) -> None:
    with pytest.raises(BadInput, match="no profile lab"):
        found(S3, home, {"AWS_PROFILE": "lab"})
    (home / ".aws" / "config").write_text("[profile lab]\nregion = x\n")
    with pytest.raises(BadInput, match="no credentials in the profile lab"):
        found(S3, home, {"AWS_PROFILE": "lab"})
    (home / ".aws" / "credentials").write_text("hunter2\n")
    with pytest.raises(BadInput, match="cannot read") as caught:
        found(S3, home, {"AWS_PROFILE": "lab"})
    assert "hunter2" not in str(caught.value)


def test_a_role_is_left_to_boto3_and_nothing_of_it_is_asked_before_it_is_needed(home: Path) -> None:
    (home / ".aws" / "config").write_text(f"[profile lab]\ncredential_process = touch {home / 'asked'}\n")
    access = found(S3, home, {"AWS_PROFILE": "lab"})
    assert access.provider and not (home / "asked").exists()
    code = ("import sys; sys.modules['boto3'] = None\n"
            "from modelfs.stores.opening import open_store\n"
            "try: open_store('s3://bucket/x')\n"
            "except Exception as error: print(type(error).__name__, error)")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True,
                          env={**os.environ, "HOME": str(home), "AWS_PROFILE": "lab"})
    assert done.stdout.decode().startswith("BadInput ") and "pip install boto3" in done.stdout.decode()


def test_an_instance_is_asked_for_its_role_only_where_the_firmware_says_that_it_is_one(home: Path) -> None:
    for place, firmware in ((S3, "sys_vendor"), (GS, "product_name"), (AZ, "chassis_asset_tag")):
        environ = {"AZURE_STORAGE_ACCOUNT": "lab"}
        assert "skip_signature" not in found(place, home, environ, firmware=firmware).config
        for other in {"sys_vendor", "product_name", "chassis_asset_tag", None} - {firmware}:
            access = found(place, home, environ, firmware=other)
            assert access.config["skip_signature"] is True and "without credentials" in access.credentials
    access = found(S3, home, {"AWS_EC2_METADATA_DISABLED": "true"}, firmware="sys_vendor")
    assert access.config["skip_signature"] is True


def test_containers_and_web_identities_are_obstores_business(home: Path) -> None:
    for environ in ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "arn:x"},
                    {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x"}, {"AWS_METADATA_ENDPOINT": "http://h"}):
        access = found(S3, home, environ)
        assert "skip_signature" not in access.config and access.provider is None


def test_a_remote_says_more_than_the_environment(home: Path) -> None:
    environ = {**KEYS, "AWS_ENDPOINT_URL_S3": "http://env:1", "AWS_REGION": "env"}
    access = found(S3, home, environ)
    assert (access.endpoint, access.config["region"]) == ("http://env:1", "env")
    access = found(S3, home, environ, CloudOptions("http://remote:1", "there", anonymous=True))
    assert (access.endpoint, access.config["region"]) == ("http://remote:1", "there")
    assert access.config["skip_signature"] is True
    assert access.config["endpoint"] == access.config["aws_endpoint_url_s3"] == "http://remote:1"


def test_google_and_azure_have_their_own_places(home: Path) -> None:
    access = found(GS, home, {"GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json"})
    assert "GOOGLE_APPLICATION_CREDENTIALS" in access.credentials and "skip_signature" not in access.config
    usual = home / ".config" / "gcloud" / "application_default_credentials.json"
    usual.parent.mkdir(parents=True)
    usual.write_text("{}")
    assert str(usual) in found(GS, home).credentials
    access = found(AZ, home, {"AZURE_STORAGE_ACCOUNT": "lab", "AZURE_STORAGE_KEY": "hunter2"})
    assert access.config == {"account_name": "lab", "account_key": "hunter2"}
    assert "AZURE_STORAGE_KEY" in access.credentials
    with pytest.raises(BadInput, match="AZURE_STORAGE_ACCOUNT_NAME"):
        found(AZ, home)


def test_google_and_azure_have_their_own_variables_for_endpoints(home: Path) -> None:
    for environ, endpoint in (({"GOOGLE_BASE_URL": "http://h:1/"}, "http://h:1"),
                              ({"STORAGE_EMULATOR_HOST": "h:2"}, "http://h:2"),
                              ({"STORAGE_EMULATOR_HOST": "https://h:3", "GOOGLE_BASE_URL": "http://h:1"}, "http://h:1"),
                              ({}, None)):
        access = found(GS, home, environ)
        assert access.endpoint == access.config.get("base_url") == endpoint
    account = {"AZURE_STORAGE_ACCOUNT_NAME": "lab"}
    for environ, endpoint in (({"AZURE_STORAGE_ENDPOINT": "http://h:1/lab/"}, "http://h:1/lab"),
                              ({"AZURE_ENDPOINT": "http://h:2"}, "http://h:2"), ({}, None)):
        access = found(AZ, home, account | environ)
        assert access.endpoint == access.config.get("endpoint") == endpoint
    for place, environ in ((GS, {"STORAGE_EMULATOR_HOST": "h:2"}), (AZ, account | {"AZURE_ENDPOINT": "http://h:2"})):
        assert found(place, home, environ, CloudOptions("http://remote:1")).endpoint == "http://remote:1"


def test_googles_emulator_is_asked_without_credentials_even_where_there_are_some(home: Path) -> None:
    key = {"GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json"}
    access = found(GS, home, key | {"STORAGE_EMULATOR_HOST": "h:2"})
    assert access.config["skip_signature"] is True and "STORAGE_EMULATOR_HOST" in access.credentials
    for environ, options in ((key | {"GOOGLE_BASE_URL": "http://h:2"}, NOTHING), (key, CloudOptions("http://h:2"))):
        assert "skip_signature" not in found(GS, home, environ, options).config


@pytest.mark.parametrize(("text", "config"), [
    ("AccountName=lab;AccountKey=hunter2==;EndpointSuffix=core.windows.net",
     {"account_name": "lab", "account_key": "hunter2=="}),
    ("DefaultEndpointsProtocol=https;AccountName=lab;AccountKey=hunter2;EndpointSuffix=core.chinacloudapi.cn",
     {"account_name": "lab", "account_key": "hunter2", "endpoint": "https://lab.blob.core.chinacloudapi.cn"}),
    ("BlobEndpoint=http://h:1/lab/;AccountName=lab;SharedAccessSignature=sv=1&sig=hunter2%3D",
     {"account_name": "lab", "sas_key": "sv=1&sig=hunter2%3D", "endpoint": "http://h:1/lab"}),
])
def test_azures_connection_string_is_used_where_no_account_is_named(
        home: Path, text: str, config: dict[str, str]) -> None:
    access = found(AZ, home, {"AZURE_STORAGE_CONNECTION_STRING": text})
    assert access.config == config and "AZURE_STORAGE_CONNECTION_STRING" in access.credentials
    named = {"AZURE_STORAGE_ACCOUNT": "other", "AZURE_STORAGE_KEY": "hunter2"}
    access = found(AZ, home, named | {"AZURE_STORAGE_CONNECTION_STRING": text})
    assert access.config == {"account_name": "other", "account_key": "hunter2"}
