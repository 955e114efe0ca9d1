"""The container's HEALTHCHECK: asks the endpoint that this job left the address of. Nothing but the standard library.

    python -m job.infra.healthcheck

It ends with 0 where there is nothing to ask: before the endpoint is open, with `observe.metrics_port = "none"`, and for
commands that have none.
"""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

ADDRESS_FILE = "GPT_JOB_HEALTH_FILE"  # the variable that names it
TIMEOUT = 4.0  # seconds


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
