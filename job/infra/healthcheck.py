"""The container's HEALTHCHECK: asks the endpoint that this job left the address of. Nothing but the standard library.

    python -m job.infra.healthcheck

It ends with 0 where there is nothing to ask: before the endpoint is open, with `observe.metrics_port = "none"`, and for
commands that have none.
"""

import os
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

ADDRESS_FILE = "GPT_JOB_HEALTH_FILE"  # the variable that names it
TIMEOUT = 4.0  # seconds


def tell_address(host: str, port: int) -> None:
    """Leave the address of `/healthz` where the check looks for it; nothing where no file is named, as in no image."""
    if named := os.environ.get(ADDRESS_FILE):
        with suppress(OSError):
            Path(named).write_text(_health_url(host, port))


def forget_address(host: str, port: int) -> None:
    """Take it away, unless another endpoint has left its own there since."""
    named = Path(os.environ.get(ADDRESS_FILE, ""))
    with suppress(OSError):
        if named.is_file() and named.read_text() == _health_url(host, port):
            named.unlink()


def _health_url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://[{host}]:{port}/healthz" if ":" in host else f"http://{host}:{port}/healthz"


def main() -> int:
    """0 when `/healthz` says that the job moves or nobody has opened one, 1 when it does not."""
    path = Path(os.environ.get(ADDRESS_FILE, ""))
    if not path.is_file():
        sys.stdout.write("no endpoint\n")
        return 0
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(path.read_text(), timeout=TIMEOUT) as answer:
            said = answer.read()
    except urllib.error.HTTPError as error:
        sys.stdout.write(error.read().decode(errors="replace"))
        return 1
    except OSError as error:
        sys.stdout.write(f"{path.read_text()}: {error}\n")
        return 1
    sys.stdout.write(said.decode(errors="replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
