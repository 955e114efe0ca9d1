"""A filter for the tests' Swift, loaded by Swift itself: conditional writes of one key take turns.

Swift looks whether the object exists when a request begins and stores it when the body has come, so that writers who
meet in between all win. S3 promises that one wins.
"""

from collections import defaultdict

from eventlet.semaphore import Semaphore


class TakeTurns:
    def __init__(self, app):
        self._app = app
        self._turns = defaultdict(Semaphore)

    def __call__(self, environ, start_response):
        if environ.get("HTTP_IF_NONE_MATCH") != "*":
            return self._app(environ, start_response)
        with self._turns[environ["PATH_INFO"]]:
            return self._app(environ, start_response)


def filter_factory(global_conf, **local_conf):
    """What a paste configuration calls."""
    return TakeTurns
