"""What S3 and the way to it can answer instead of the object, in this job's words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    ValidationError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from job.errors import AccessError, ConfigError, JobError, NotFoundError, StorageError
from job.infra.object_store import folder_errors

_REFUSED = {"AuthorizationHeaderMalformed", "InvalidIdentityToken", "InvalidToken"}  # refusals that come as 400
_PASSING = {"ExpiredToken", "ExpiredTokenException", "RequestTimeTooSkewed"}  # refused now; a fresh start may do
_STALE = _PASSING - {"RequestTimeTooSkewed"} | {"InvalidToken", "InvalidTokenId", "TokenRefreshRequired"}
_WRONG_KEY = {"InvalidAccessKeyId", "InvalidIdentityToken", "InvalidToken", "SignatureDoesNotMatch"}
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, SSOError)
_SETTINGS = (ConfigParseError, InvalidConfigError, ParamValidationError, ValidationError)


@contextmanager
def s3_errors(action: str) -> Iterator[None]:
    """Turn what botocore raises into our errors; KeyError only when S3 itself says NoSuchKey, not for any 404.

    The operating system's errors are among them: a download's file, a token file, a CA file.
    """
    with folder_errors(action):
        try:
            yield
        except ClientError as error:
            if code(error) == "NoSuchKey":
                raise KeyError(action) from error
            raise _answer(action, error) from error
        except _NO_CREDENTIALS as error:
            raise AccessError(f"{action}: {_text(error)}") from error
        except _SETTINGS as error:
            raise ConfigError(f"{action}: {_text(error)}") from error
        except CredentialRetrievalError as error:  # its text repeats what a foreign program printed
            raise StorageError(f"{action}: no credentials from {error.kwargs.get('provider')}") from None
        except (BotoCoreError, ResponseParserError, HTTPError) as error:
            raise StorageError(f"{action}: {_text(error)}") from error
        except KeyError as error:  # never to be taken for "no such object"
            raise StorageError(f"{action}: the answer lacks {error}") from error


def without_credentials(error: BaseException) -> bool:
    """Whether nobody was asked, because there was nothing to ask with; else it was refused."""
    return isinstance(error.__cause__, _NO_CREDENTIALS)


def code(error: ClientError) -> str:
    """S3's name for the error, or the HTTP status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status(error: ClientError) -> int:
    """The answer's HTTP status; 0 when there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def stale_credentials(error: ClientError) -> bool:
    """Whether S3 (not the service that gives credentials) says that these were good once, or are known no more."""
    if error.operation_name.startswith("AssumeRole"):
        return False
    return code(error) in _STALE


def _answer(action: str, error: ClientError) -> JobError:
    said = f"{action}: {_text(error)}"
    if code(error) == "NoSuchBucket":
        return NotFoundError(said)
    if code(error) in _PASSING:
        return StorageError(said)
    if status(error) in {401, 403} or code(error) in _REFUSED:
        return AccessError(said)
    return StorageError(said)


def _text(error: Exception) -> str:
    """The error's text without what may be secret: the message about a wrong key, user and password of a URL."""
    if isinstance(error, ClientError):
        if code(error) in _WRONG_KEY:
            return code(error)
        if not code(error):
            return f"the answer is HTTP {status(error)} and says no more, as if it were not from S3"
    return re.sub(r"//[^/\s]*@", "//", str(error))
