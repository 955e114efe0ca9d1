"""OpenStack Swift with its S3 API as one container: four processes of one user, everything kept below /data.

    serve.py            start them, make the buckets in $S3_BUCKETS, end when one of them ends or at SIGTERM
    serve.py configure  write their settings and rings to /etc/swift, once, when the image is built
    serve.py check      whether it answers and the buckets are there (the image's health check)

For development and tests: one node, one copy, keys that everybody knows (test:tester, testing), no TLS.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from swift.common.internal_client import InternalClient

PORTS = {"proxy": 8080, "account": 6200, "container": 6201, "object": 6202}
ETC, DATA, TEMPLATES = Path("/etc/swift"), Path("/data"), Path("/srv")
READY = Path("/tmp/ready")  # noqa: S108  # the container's own
START_SECONDS = 60


def configure() -> None:
    """Settings of all four servers, and the rings of one device on one node."""
    (ETC / "swift.conf").write_text((TEMPLATES / "swift.conf").read_text())
    (ETC / "internal-client.conf").write_text((TEMPLATES / "internal-client.conf").read_text().format(etc=ETC))
    for name, port in PORTS.items():
        template = TEMPLATES / ("proxy-server.conf" if name == "proxy" else "storage-server.conf")
        host = "0.0.0.0" if name == "proxy" else "127.0.0.1"  # noqa: S104  # a container's own network
        text = template.read_text().format(name=name, port=port, host=host, etc=ETC, devices=DATA, user="swift", tls="")
        (ETC / f"{name}-server.conf").write_text(text)
        if name != "proxy":
            for step in (["create", "0", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
                subprocess.run(["swift-ring-builder", f"{name}.builder", *step], cwd=ETC, check=True)


def serve() -> int:
    """Run until asked to stop (0) or until one of the servers has ended (1)."""
    (DATA / "d1").mkdir(exist_ok=True)
    READY.unlink(missing_ok=True)
    servers = [subprocess.Popen([f"swift-{name}-server", str(ETC / f"{name}-server.conf"), "-v"]) for name in PORTS]
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        make_buckets()
        while not asked and all(server.poll() is None for server in servers):
            time.sleep(0.2)
    finally:
        for server in servers:
            server.terminate()
    return 0 if asked else 1


def make_buckets() -> None:
    """Every bucket in $S3_BUCKETS: to Swift they are containers of the account that the keys belong to."""
    deadline = time.monotonic() + START_SECONDS
    while not answers():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer within {START_SECONDS} s")
        time.sleep(0.1)
    client = InternalClient(str(ETC / "internal-client.conf"), "buckets", request_tries=5)
    for bucket in os.environ.get("S3_BUCKETS", "runs").split():
        client.create_container("AUTH_test", bucket)
        sys.stdout.write(f"bucket {bucket} is there\n")
    sys.stdout.flush()
    READY.touch()


def answers() -> bool:
    """Whether all four servers listen and the one in front says that it is well."""
    try:
        for port in PORTS.values():
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        with urllib.request.urlopen(f"http://127.0.0.1:{PORTS['proxy']}/healthcheck", timeout=4) as answer:
            return answer.read() == b"OK"
    except OSError:
        return False


def main(command: str) -> int:
    """What the command line asks for."""
    if command == "configure":
        configure()
        return 0
    if command == "check":
        return 0 if READY.exists() and answers() else 1
    return serve()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or ["serve"]))
