"""A real S3 server for tests: OpenStack Swift with its S3 API, over TLS, on loopback, in one folder.

Four processes of one user, nothing installed outside a virtual environment of its own (`make .venv-s3`). Swift is the
server here because it checks what boto3 sends (signatures, checksum trailers) and honours `If-None-Match: *`, with help
from `swift_filter.py` when writers race. A listing comes in pages of 100 keys: a few hundred objects are several pages.
"""

import http.client
import os
import pwd
import signal
import socket
import ssl
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import boto3.session
from botocore.config import Config

from tests.ports import free_ports

_SERVERS = ("proxy", "account", "container", "object")
_START_SECONDS = 60

_TEMPLATES = Path(__file__).parents[1] / "docker" / "s3"  # of the same server as an image
_TLS = "cert_file = {folder}/cert.pem\nkey_file = {folder}/key.pem\n"


class S3Server:
    """A server that keeps its objects in `folder` over stop and start. Path-style addressing only."""

    region = "us-east-1"
    access_key = "test:tester"
    secret_key = "testing"
    bucket = "runs"

    def __init__(self, folder: Path, venv: Path) -> None:
        self._folder, self._bin = folder, venv / "bin"
        self._ports = dict(zip(_SERVERS, free_ports(len(_SERVERS)), strict=True))
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ca = folder / "cert.pem"
        self.endpoint = f"https://127.0.0.1:{self._ports['proxy']}"
        (folder / "etc").mkdir()
        (folder / "dev" / "d1").mkdir(parents=True)
        self._configure()
        self._build_rings()
        make_certificate(folder)

    def start(self) -> None:
        """Start all processes; returns when they answer."""
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}  # for swift_filter
        for name in _SERVERS:
            command = [self._bin / f"swift-{name}-server", self._folder / "etc" / f"{name}-server.conf", "-v"]
            with (self._folder / f"{name}.log").open("ab") as log:
                self._processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
                )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                self.stop()
                logs = "".join(path.read_text(errors="replace")[-1000:] for path in self._folder.glob("*.log"))
                raise RuntimeError(f"Swift did not start: {logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill all processes at once, as a power cut would."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._processes.clear()

    @property
    def environ(self) -> dict[str, str]:
        """boto3's own variables for this server, and nothing else in reach of boto3."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_CA_BUNDLE": str(self.ca),
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def fresh_uri(self) -> str:
        """A place in the bucket where nothing is yet."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex}"

    def client(self) -> Any:
        """A boto3 client with the right keys, for what the job itself never does."""
        session = boto3.session.Session(self.access_key, self.secret_key, region_name=self.region)
        options = Config(s3={"addressing_style": "path"})
        return session.client("s3", endpoint_url=self.endpoint, verify=str(self.ca), config=options)

    def _configure(self) -> None:
        etc, user = self._folder / "etc", pwd.getpwuid(os.getuid()).pw_name
        (etc / "swift.conf").write_text((_TEMPLATES / "swift.conf").read_text())
        places = {"host": "127.0.0.1", "etc": etc, "devices": self._folder / "dev", "user": user}
        for name, port in self._ports.items():
            template = _TEMPLATES / ("proxy-server.conf" if name == "proxy" else "storage-server.conf")
            text = template.read_text().format(name=name, port=port, tls=_TLS.format(folder=self._folder), **places)
            (etc / f"{name}-server.conf").write_text(text)

    def _build_rings(self) -> None:
        """One device on one node; the three rings at once, because each command takes a while to load."""
        tool, rings = self._bin / "swift-ring-builder", []
        for name in _SERVERS[1:]:
            builder = f"{tool} {name}.builder"
            device = f"r1z1-127.0.0.1:{self._ports[name]}/d1"
            steps = f"{builder} create 0 1 0 && {builder} add {device} 1 && {builder} rebalance"
            rings.append(subprocess.Popen(["sh", "-c", steps], cwd=self._folder / "etc", stdout=subprocess.DEVNULL))
        statuses = [ring.wait() for ring in rings]
        if any(statuses):
            raise RuntimeError("swift-ring-builder failed")

    def _answers(self) -> bool:
        try:
            for name in _SERVERS[1:]:
                socket.create_connection(("127.0.0.1", self._ports[name]), timeout=1).close()
            context = ssl.create_default_context(cafile=self.ca)
            proxy = http.client.HTTPSConnection("127.0.0.1", self._ports["proxy"], timeout=5, context=context)
            proxy.request("GET", "/healthcheck")
            return proxy.getresponse().read() == b"OK"
        except OSError:
            return False


def make_certificate(folder: Path) -> None:
    """`cert.pem` and `key.pem`: a certificate for loopback that is its own authority."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    authority = ["-addext", "basicConstraints=critical,CA:TRUE"]
    form = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", *form, *names, *authority], cwd=folder, check=True, capture_output=True)
