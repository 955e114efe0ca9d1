"""Credentials that are looked up again when the store says that they have run out.

botocore renews what it knows to expire, by its own clock; it neither repeats a request that was answered ExpiredToken
nor reads a credentials file twice. Here every request is signed with what is valid at that moment, and an answer about
stale credentials makes the whole chain (environment, files, web identity, ...) be asked afresh, once for all threads.
"""

import threading
from collections.abc import Callable
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

_ADVANCE = 900.0  # seconds before the end at which credentials are renewed; sooner before the end of short-lived ones


class RenewableCredentials:
    """What botocore signs with: credentials of the usual chain, which can be asked again."""

    def __init__(self, load: Callable[[], Any], first: Any) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._used = threading.local()
        self._frozen: Any = None
        self._ends = False
        self._take(first)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_frozen_credentials(self) -> Any:
        """The credentials of this moment; botocore signs one request with them."""
        if self._frozen is None or self._ends_within(self._advance):
            with self._lock:
                self._refresh()
        self._used.frozen = frozen = self._frozen
        return frozen

    def renew(self, only_files: bool = False) -> bool:
        """Look the credentials up again after the store refused those of this thread's last request.

        Args:
            only_files: Not if that means asking another service.

        Returns:
            Whether there are others now, be it that another thread has found them already.
        """
        with self._lock:
            refused = getattr(self._used, "frozen", None)
            if refused is not self._frozen:
                return True
            if only_files and self._ends:
                return False
            try:
                self._take(self._load())
                self._refresh()
            except (BotoCoreError, ClientError, OSError):  # the refusal itself says more
                self._frozen = refused
                return False
            return bool(self._frozen != refused)

    def _take(self, inner: Any) -> None:
        if inner is None:
            raise CredentialRetrievalError(provider="the chain", error_msg="there are none any more")
        self._inner, self._frozen, self._advance = inner, None, 0.0
        self._ends = hasattr(inner, "refresh_needed")

    def _ends_within(self, seconds: float) -> bool:
        return self._ends and bool(self._inner.refresh_needed(seconds))

    def _refresh(self) -> None:
        """Ask for credentials if those at hand end soon; those stay where nobody answers and they are still valid."""
        if self._frozen is not None and not self._ends_within(self._advance):
            return  # another thread was here
        try:
            self._frozen = self._inner.get_frozen_credentials()
        except RuntimeError as error:  # botocore's word for: the new ones are expired too
            raise CredentialRetrievalError(provider=self._inner.method, error_msg=str(error)) from error
        except Exception:
            if self._frozen is None or self._ends_within(0):
                raise
        self._advance = _ADVANCE * 2
        while self._advance > 1 and self._ends_within(self._advance):
            self._advance /= 2
        self._advance /= 2


class Chain:
    """botocore's chain of credential providers, in the place that a session keeps for it."""

    def __init__(self) -> None:
        self.credentials: RenewableCredentials | None = None

    def load_credentials(self) -> RenewableCredentials | None:
        """What botocore calls when a client is made."""
        if (first := _from_scratch()) is not None:
            self.credentials = RenewableCredentials(_from_scratch, first)
        return self.credentials


def _from_scratch() -> Any:
    """What the chain gives when nothing has been read before."""
    return botocore.session.Session().get_credentials()
