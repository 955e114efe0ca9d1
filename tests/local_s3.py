"""Small servers on loopback for what a good S3 server cannot be made to do: go silent, let keys run out, be looked at.

`LocalS3` keeps objects in memory and speaks as much S3 as the job asks for, without checking signatures or conditions;
what a store must do is tested on the real one (`s3_server.py`). `LocalSts` gives credentials for a web identity.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from botocore import xform_name

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def access_key(self) -> str:
        return self.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]

    @property
    def operation(self) -> str:
        """S3's name for it, for requests about objects."""
        ways = {
            "PUT": "UploadPart" if "partNumber" in self.query else "PutObject",
            "POST": "CreateMultipartUpload" if "uploads" in self.query else "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload" if "uploadId" in self.query else "DeleteObject",
            "GET": "GetObject",
            "HEAD": "HeadObject",
        }
        return ways[self.method]


@dataclass
class Stall:
    """A server that goes silent in the `count` next requests that `begins` names.

    Args:
        operation: Which requests.
        when: `unread` reads nothing of the body, `unanswered` reads it and says nothing, `halfway` sends half a body.
        count: How often.
    """

    operation: str
    when: str
    count: int = 1_000_000


@dataclass
class Plan:
    """What a LocalS3 does beyond serving."""

    stalls: list[Stall] = field(default_factory=list)
    drip: float = 0.0  # seconds between two pieces of an answer's body
    pieces: int = 8  # of a dripping body
    valid: Callable[[str], bool] = lambda access_key: True
    refusal: tuple[int, str] = (400, "ExpiredToken")
    conditional: bool = True
    wordless: int = 0  # answers of 404 that have lost their body


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that hang up are what is tested here."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class LocalS3(_Server):
    """An object store that keeps what it is given and does what the plan says."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or Plan()
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.closing = threading.Event()
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _S3Handler)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": "first",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "*",
        }

    def counted(self) -> Counter[str]:
        """How often each operation was asked for."""
        return Counter(request.operation for request in self.requests)

    def stall(self, request: Request) -> str:
        with self.lock:
            for stall in self.plan.stalls:
                if stall.operation == request.operation and stall.count:
                    stall.count -= 1
                    return stall.when
        return ""


class _S3Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY

    def log_message(self, *_):
        pass

    def serve(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, headers["host"], unquote(url.path), query, headers)
        with self.server.lock:
            self.server.requests.append(request)
        stall = self.server.stall(request)
        if stall == "unread":
            self.silence()
            return
        body = self.rfile.read(int(headers.get("content-length", 0)))
        if stall == "unanswered":
            self.silence()
            return
        plan = self.server.plan
        if not plan.valid(request.access_key):
            self.refuse(*plan.refusal)
        elif headers.get("if-none-match") and not plan.conditional:
            self.refuse(501, "NotImplemented")
        else:
            getattr(self, xform_name(request.operation))(request, body, stall)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815

    def silence(self):
        self.close_connection = True
        self.server.closing.wait(60)

    def put_object(self, request, body, stall):
        if request.headers.get("if-none-match") == "*" and request.path in self.server.objects:
            return self.refuse(412, "PreconditionFailed")
        self.server.objects[request.path] = body
        return self.answer(ETag=f'"{len(body)}"')

    def create_multipart_upload(self, request, body, stall):
        self.server.uploads["upload"] = {}
        self.answer(
            f"<InitiateMultipartUploadResult {NAMESPACE}><UploadId>upload</UploadId></InitiateMultipartUploadResult>"
        )

    def upload_part(self, request, body, stall):
        self.server.uploads[request.query["uploadId"]][int(request.query["partNumber"])] = body
        self.answer(ETag=f'"{len(body)}"')

    def complete_multipart_upload(self, request, body, stall):
        parts = self.server.uploads.pop(request.query["uploadId"])
        self.server.objects[request.path] = b"".join(parts[number] for number in sorted(parts))
        self.answer(f"<CompleteMultipartUploadResult {NAMESPACE}><ETag>x</ETag></CompleteMultipartUploadResult>")

    def abort_multipart_upload(self, request, body, stall):
        self.server.uploads.pop(request.query["uploadId"], None)
        self.answer(status=204)

    def delete_object(self, request, body, stall):
        self.server.objects.pop(request.path, None)
        self.answer(status=204)

    def head_object(self, request, body, stall):
        self.get_object(request, body, stall)

    def get_object(self, request, body, stall):
        if request.path not in self.server.objects:
            if self.server.plan.wordless:
                self.server.plan.wordless -= 1
                return self.answer(status=404)
            return self.refuse(404, "NoSuchKey")
        content = self.server.objects[request.path]
        etag = f'"{len(content)}"'
        if "range" in request.headers:
            first, last = request.headers["range"].removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", etag)
        self.end_headers()
        if request.method == "HEAD":
            return None
        if stall == "halfway":
            self.wfile.write(content[: len(content) // 2])
            return self.silence()
        if not self.server.plan.drip:
            return self.wfile.write(content)
        for at in range(self.server.plan.pieces):  # a byte each, and at last the rest
            self.wfile.write(content[at : at + 1])
            time.sleep(self.server.plan.drip)
        return self.wfile.write(content[self.server.plan.pieces :])

    def refuse(self, status, code):
        self.answer(f"<Error><Code>{code}</Code><Message>injected</Message></Error>", status=status)

    def answer(self, text="", status=200, **headers):
        self.send_response(status)
        body = text.encode()
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class LocalSts(_Server):
    """Gives credentials for a web identity token: `key-1`, `key-2`, ..., valid for `lifetime` seconds."""

    def __init__(self, lifetime: float) -> None:
        self.lifetime = lifetime
        self.tokens: list[str] = []
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), _StsHandler)


class _StsHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.tokens.append(form["WebIdentityToken"][0])
        end = datetime.fromtimestamp(time.time() + self.server.lifetime, UTC).isoformat()
        number = len(self.server.tokens)
        body = f"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
            <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>key-{number}</AccessKeyId>
            <SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken><Expiration>{end}</Expiration>
            </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>""".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
