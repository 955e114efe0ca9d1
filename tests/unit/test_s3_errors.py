"""What S3 and the way to it can answer, in this job's words."""

import botocore.exceptions as boto
import pytest
import urllib3
from botocore.parsers import ResponseParserError

from job.errors import AccessError, ConfigError, NotFoundError, StorageError
from job.infra.s3_errors import s3_errors


def answer(status, code, message="no"):
    """The error that botocore makes of an answer."""
    error = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(error, "GetObject")


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        (404, "NoSuchKey", KeyError),
        (404, "404", StorageError),
        (404, "NoSuchUpload", StorageError),
        (404, "NoSuchBucket", NotFoundError),
        (401, "Unauthorized", AccessError),
        (403, "AccessDenied", AccessError),
        (403, "403", AccessError),
        (403, "SignatureDoesNotMatch", AccessError),
        (403, "InvalidAccessKeyId", AccessError),
        (400, "InvalidToken", AccessError),
        (400, "AuthorizationHeaderMalformed", AccessError),
        (400, "ExpiredToken", StorageError),
        (403, "ExpiredToken", StorageError),
        (403, "RequestTimeTooSkewed", StorageError),
        (412, "PreconditionFailed", StorageError),
        (416, "InvalidRange", StorageError),
        (500, "InternalError", StorageError),
        (503, "SlowDown", StorageError),
    ],
)
def test_answers(status, code, ours):
    """Refused, absent and broken are told apart; only NoSuchKey is a missing object."""
    with pytest.raises(ours) as caught, s3_errors("get s3://runs/a"):
        raise answer(status, code)

    assert type(caught.value) is ours
    assert "get s3://runs/a" in str(caught.value)


def test_answer_without_a_reason():
    """An answer that names no error, as a gateway's page, is told by its HTTP status."""
    with pytest.raises(StorageError, match="HTTP 502"), s3_errors("get s3://runs/a"):
        raise answer(502, "")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (boto.NoCredentialsError(), AccessError),
        (boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), AccessError),
        (boto.ProfileNotFound(profile="p"), AccessError),
        (boto.SSOTokenLoadError(error_msg="gone"), AccessError),
        (boto.CredentialRetrievalError(provider="process", error_msg="canary"), StorageError),
        (boto.ParamValidationError(report="bucket"), ConfigError),
        (boto.InvalidRegionError(region_name="x y"), ConfigError),
        (boto.EndpointConnectionError(endpoint_url="https://me:canary@host/"), StorageError),
        (boto.SSLError(endpoint_url="https://host/", error="CERTIFICATE_VERIFY_FAILED"), StorageError),
        (boto.ReadTimeoutError(endpoint_url="https://host/"), StorageError),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), StorageError),
        (boto.FlexibleChecksumError(error_msg="crc"), StorageError),
        (ResponseParserError("not XML"), StorageError),
        (urllib3.exceptions.SSLError("bad record"), StorageError),
        (KeyError("UploadId"), StorageError),
    ],
)
def test_what_happens_on_the_way(theirs, ours):
    """Missing credentials, wrong settings and a broken way are told apart, and no secret is repeated."""
    with pytest.raises(ours) as caught, s3_errors("get s3://runs/a"):
        raise theirs

    assert type(caught.value) is ours
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"])
def test_messages_about_keys(code):
    """What a server says about a wrong key may contain it, so only the kind of the error is repeated."""
    with pytest.raises(AccessError) as caught, s3_errors("get s3://runs/a"):
        raise answer(403, code, "No such key: canary")

    assert str(caught.value) == f"get s3://runs/a: {code}"
