"""Errors of an object store name what was found and which setting to correct, whoever called it."""

from __future__ import annotations

import sys

import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError

from csflow.errors import StorageError, StoreUnreachableError
from csflow.system.object_store import Target, explaining, make_client, store_address

TARGET = Target("s3://plant/weights/trunk", "http://store", "features.weights", "s3:GetObject")


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "No."}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal("NoSuchBucket"), r"http://store has no bucket s3://plant\. Create it, or correct features\.weights"),
        (refusal("404"), r"s3://plant/weights/trunk does not exist at http://store \(404\).*correct features\.weights"),
        (refusal("403"), r"denies access to s3://plant/weights/trunk \(403\).*AWS_ACCESS_KEY_ID .*need s3:GetObject"),
        (refusal("SignatureDoesNotMatch"), r"does not accept these credentials.*AWS_SECRET_ACCESS_KEY"),
        (refusal("ExpiredToken"), "have expired.*AWS_SESSION_TOKEN"),
        (refusal("PermanentRedirect"), r"s3://plant is in another region.*AWS_DEFAULT_REGION"),
        (refusal("RequestTimeTooSkewed"), "this machine's clock is wrong"),
        (refusal("Strange"), "http://store refuses s3://plant/weights/trunk: .*Strange"),
        (NoCredentialsError(), "no complete credentials for s3://plant/weights/trunk.*Set AWS_ACCESS_KEY_ID"),
        (BotoCoreError(), "cannot be reached at http://store"),
    ],
)
def test_a_refusal_is_explained(error: Exception, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught, explaining(TARGET):
        raise error
    assert not isinstance(caught.value, StoreUnreachableError)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [refusal("SlowDown"), EndpointConnectionError(endpoint_url="http://store")])
def test_what_passes_by_itself_has_a_type_of_its_own(error: Exception) -> None:
    with pytest.raises(StoreUnreachableError, match="http://store"), explaining(TARGET):
        raise error


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(FileNotFoundError), explaining(TARGET):
        raise FileNotFoundError


def test_the_address_is_the_one_given_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert store_address() == "AWS"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    assert (store_address(), store_address("http://mine")) == ("http://s3", "http://mine")


def test_attempts_are_those_given_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    given, asked = make_client(attempts=7), make_client()
    assert [client.meta.config.retries["total_max_attempts"] for client in (given, asked)] == [7, 2]


def test_without_boto3_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StorageError, match=r"Install csflow\[train\]"):
        make_client()
