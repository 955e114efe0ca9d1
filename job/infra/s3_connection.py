"""How requests reach S3: with credentials that can be renewed, over connections that are watched.

botocore repeats requests that fail, with growing, random pauses. Two things it would do wrong are set right here: it
would give up when credentials run out, and go on for minutes with a server that has gone silent.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import boto3.session
import botocore.session
from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool
from botocore.config import Config
from botocore.exceptions import ClientError
from urllib3.connection import HTTPConnection

from job.config import StorageConfig
from job.errors import ConfigError
from job.infra.buffers import Joined
from job.infra.s3_credentials import Chain, RenewableCredentials
from job.infra.s3_errors import code, s3_errors, stale_credentials, status
from job.infra.watchdog import TRIES, Watch, Watchdog

_GARBLED = 3  # answers in a row that do not say what is missing
_RENEWALS = 2  # of one request's credentials


class Connection:
    """A client for S3 whose requests are made with `ask`."""

    def __init__(self, client: Any, credentials: RenewableCredentials | None, watchdog: Watchdog) -> None:
        self.client = client
        self._credentials = credentials
        self._watchdog = watchdog

    def watching(self) -> AbstractContextManager[Watch]:
        """A block whose requests, and what is read of their answers, are one part: watched together, given up together.

        Raises:
            TimeoutError: Too often no byte moved for `storage.stall_seconds`.
        """
        return self._watchdog.watching()

    def moved(self) -> None:
        """Bytes have arrived."""
        self._watchdog.moved()

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        """Make one request; once more if its credentials were stale and there are others now."""
        with self.watching():
            return self._ask(verb, request)

    def ask_patiently(self, verb: str, **request: Any) -> dict[str, Any]:
        """Make a request that the server may need long to work on: only botocore's own time-outs hold."""
        return self._ask(verb, request)

    def _ask(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        renewals, again = _RENEWALS, _GARBLED
        while True:
            if isinstance(body := request.get("Body"), Joined):
                body.seek(0)
            try:
                answer: dict[str, Any] = getattr(self.client, verb)(**request)
            except ClientError as error:
                if again and _is_garbled(verb, error):
                    again -= 1
                elif renewals and self._renewed(error):
                    renewals -= 1
                else:
                    raise
            else:
                self.moved()
                return answer

    def _renewed(self, error: ClientError) -> bool:
        """Whether there are other credentials now than those that this answer refused."""
        if self._credentials is None or not (stale_credentials(error) or status(error) in {401, 403}):
            return False
        return self._credentials.renew(only_files=not stale_credentials(error))


def _is_garbled(verb: str, error: ClientError) -> bool:
    """Whether it is a 404 whose body, which says if it is the object or the bucket, was lost on the way."""
    return verb == "get_object" and status(error) == 404 and code(error) in {"", "404"}


def connect(config: StorageConfig, moved: Callable[[], None] = lambda: None, tries: int = 8) -> Connection:
    """A connection to S3. Credentials, region, endpoint and CA come from boto3's own chain.

    Args:
        config: What that chain does not cover.
        moved: Called when bytes moved, from any thread.
        tries: Of a request that gets no answer.
    """
    connect_timeout, read_timeout = config.timeouts
    options = Config(
        retries={"mode": "standard", "total_max_attempts": tries},
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        tcp_keepalive=True,
        max_pool_connections=config.concurrency + 2,
        s3={"addressing_style": config.addressing_style},
        request_checksum_calculation=config.checksums,
        response_checksum_validation=config.checksums,
    )
    chain, session = Chain(), botocore.session.Session()
    session.register_component("credential_provider", chain)
    try:
        with s3_errors("connect to S3"):
            client = boto3.session.Session(botocore_session=session).client("s3", config=options)
    except ValueError:
        raise ConfigError("connect to S3: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL is not a URL") from None
    watchdog = Watchdog(config.patience, moved)
    _watch(client, watchdog, read_timeout)
    return Connection(client, chain.credentials, watchdog)


def _watch(client: Any, watchdog: Watchdog, send_timeout: float) -> None:
    """Tell `watchdog` of every connection that the client's requests take, and end those that it has given up."""

    class Watched(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self._attach()

        def putrequest(self, *args: Any, **kwargs: Any) -> None:
            if self.sock is not None:
                self._attach()
            super().putrequest(*args, **kwargs)

        def _attach(self) -> None:
            self.sock.settimeout(send_timeout)  # urllib3 would allow sending only what it allows connecting
            watchdog.attach(self.sock)

    def after_attempt(response: Any, caught_exception: Exception | None, **_: Any) -> bool | None:
        """Asked by botocore whether to repeat a request: False is no, None leaves it to botocore's own rules."""
        if caught_exception is not None or response[0].status_code >= 300:
            watchdog.detach()
        return False if watchdog.watch and watchdog.watch.stalls >= TRIES else None

    client.meta.events.register_first("needs-retry.s3", after_attempt)
    pools = client._endpoint.http_session._pool_classes_by_scheme
    for scheme, pool in (("http", AWSHTTPConnectionPool), ("https", AWSHTTPSConnectionPool)):
        watched = type("WatchedConnection", (Watched, pool.ConnectionCls), {})
        pools[scheme] = type("WatchedPool", (pool,), {"ConnectionCls": watched})
