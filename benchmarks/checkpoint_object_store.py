"""A run whose folder is gs://: trained, killed, resumed, opened, against a server of the protocol on this machine.

    pip install 'wanjax[gcs]'
    python -m benchmarks.checkpoint_object_store --folder SCRATCH

A server in this process answers what Google Cloud Storage's JSON interface answers to the two clients that a run uses,
TensorStore's own (arrays) and gcsfs (everything else), and keeps objects in memory. ``experiments.train`` trains the
tiny config on ``gs://bucket/run`` with its logs in a local folder, is killed, and goes on; the state has to be bit for
bit that of a run in a local folder. It says nothing about speed, nor about rights, quotas and faults of the service.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import email
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import sys
import threading
import urllib.parse
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BUCKET = "bucket"


class Store:
    """Objects by name: bytes and a generation, which grows with every write."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.lock, self.generation = threading.Lock(), 0

    def put(self, name: str, data: bytes, condition: str | None) -> dict[str, Any] | None:
        """The object's record; None where another generation is there than the condition names (0: none)."""
        with self.lock:
            current = self.objects.get(name, (b"", 0))[1]
            if condition is not None and int(condition) != current:
                return None
            self.generation += 1
            self.objects[name] = (data, self.generation)
        return self.record(name)

    def record(self, name: str) -> dict[str, Any]:
        data, generation = self.objects[name]
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"kind": "storage#object", "name": name, "bucket": BUCKET, "size": str(len(data)), "updated": now,
                "timeCreated": now, "generation": str(generation), "metageneration": "1", "storageClass": "STANDARD",
                "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
                "contentType": "application/octet-stream"}  # fmt: skip

    def listed(self, prefix: str, delimiter: str, start: str, end: str) -> dict[str, Any]:
        items, prefixes = [], set()
        for name in sorted(self.objects):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.record(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class Handler(http.server.BaseHTTPRequestHandler):
    """Requests of the JSON interface, version 1."""

    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, format: str, *args: Any) -> None: ...

    def answer(self, code: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def parsed(self) -> tuple[list[str], dict[str, str]]:
        """Path after ``/b/``, unquoted, and the query."""
        url = urllib.parse.urlsplit(self.path)
        path = [urllib.parse.unquote(part) for part in url.path.split("/b/", 1)[-1].split("/")]
        return path, dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))

    def do_GET(self) -> None:
        path, query = self.parsed()
        if path[0] != BUCKET:
            return self.answer(404, {"error": {"code": 404, "message": "no such bucket"}})
        if len(path) == 1:
            return self.answer(200, {"kind": "storage#bucket", "name": BUCKET})
        if len(path) == 2:
            asked = (query.get(name, "") for name in ("prefix", "delimiter", "startOffset", "endOffset"))
            return self.answer(200, self.store.listed(*asked))
        name = path[2]
        if name not in self.store.objects:
            return self.answer(404, {"error": {"code": 404, "message": f"no such object: {name}"}})
        data, generation = self.store.objects[name]
        if query.get("alt") != "media":
            return self.answer(200, self.store.record(name))
        marks = {"x_goog_generation": str(generation), "x_goog_metageneration": "1", "x_goog_stored_content_length":
                 str(len(data)), "ETag": str(generation), "Content_Type": "application/octet-stream"}  # fmt: skip
        asked = self.headers.get("Range")
        if not asked:
            return self.answer(200, data, **marks)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if begin >= end:
            return self.answer(416, b"", Content_Range=f"bytes */{len(data)}")
        self.answer(206, data[begin:end], Content_Range=f"bytes {begin}-{end - 1}/{len(data)}", **marks)

    def do_POST(self) -> None:
        if self.path.startswith("/session/"):  # gcsfs goes on with an upload so
            return self.do_PUT()
        (path, query), data = self.parsed(), self.body()
        if "/batch/" in self.path:
            return self.batch(data)
        if len(path) > 3 and path[3] == "rewriteTo":
            record = self.store.put(path[7], self.store.objects[path[2]][0], None)
            return self.answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": record})
        name, condition, kind = query.get("name", ""), query.get("ifGenerationMatch"), query.get("uploadType")
        if kind == "resumable":
            name = name or json.loads(data)["name"]
            key = str(len(self.store.uploads))
            self.store.uploads[key] = (name, bytearray())
            place = f"http://{self.headers['Host']}/session/{key}"
            return self.answer(200, b"", Location=place)
        if kind == "multipart":
            kind_of = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, content = email.message_from_bytes(kind_of + data).get_payload()
            name, data = json.loads(about.get_payload())["name"], between(data, content)
        record = self.store.put(name, data, condition)
        self.answer(200, record) if record else self.answer(412, {"error": {"code": 412, "message": "changed"}})

    def do_PUT(self) -> None:
        key, data = self.path.removeprefix("/session/").split("?")[0], self.body()
        name, gathered = self.store.uploads[key]
        gathered += data
        if self.headers.get("Content-Range", "").endswith("/*"):
            return self.answer(308, b"", Range=f"bytes=0-{len(gathered) - 1}")
        self.answer(200, self.store.put(name, bytes(gathered), None) or {})

    def do_DELETE(self) -> None:
        path, _ = self.parsed()
        gone = self.store.objects.pop(path[2], None)
        self.answer(204 if gone else 404)

    def batch(self, data: bytes) -> None:
        """Deletions, many in one request."""
        answers = []
        for line in data.decode(errors="replace").splitlines():
            if line.startswith("DELETE "):
                name = urllib.parse.unquote(line.split()[1].split("/o/")[1].split("?")[0])
                gone = self.store.objects.pop(name, None)
                status = f"HTTP/1.1 {204 if gone else 404} \r\n\r\n"
                answers.append(f"--mark\r\nContent-Type: application/http\r\n\r\n{status}")
        self.answer(200, ("".join(answers) + "--mark--\r\n").encode(), Content_Type="multipart/mixed; boundary=mark")


def between(data: bytes, part: Any) -> bytes:
    """The bytes of the last part of a multipart body, which its parsed form does not keep as they are."""
    boundary = data[: data.index(b"\r\n")] if b"\r\n" in data[:200] else data[: data.index(b"\n")]
    last = data.split(boundary)[2]
    separator = b"\r\n\r\n" if b"\r\n\r\n" in last else b"\n\n"
    content = last.split(separator, 1)[1]
    return content[:-2] if content.endswith(b"\r\n") else content[:-1]


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of connections that a client leaves in the middle of a request, as one that is killed does."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve() -> tuple[Store, str]:
    store = Store()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return store, f"http://127.0.0.1:{server.server_address[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="scratch")
    parser.add_argument("--steps", type=int, default=21)
    flags = parser.parse_args()
    folder = flags.folder.absolute() / "object_store"
    shutil.rmtree(folder, ignore_errors=True)
    store, url = serve()
    os.environ |= {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "JAX_PLATFORMS": "cpu",
                   "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}  # fmt: skip

    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from tests import launching
    from wanjax import checkpoint

    run = {"train.expert": "high", "train.steps_high": flags.steps, "train.keep": 2}
    source = launching.small_data(folder / "data")
    there = [*launching.command("gs://bucket/run", source, folder / "cache", **run), "--logs", str(folder / "logs")]
    local = launching.command(folder / "local", source, folder / "cache", **run)
    code, output = launching.finish(local)
    if code:
        sys.exit(f"error: the run in a local folder failed:\n{output}")
    launching.kill_and_resume(there, folder / "logs", flags.steps, kills=1, seed=3)
    if launching.log(folder / "logs") != launching.log(folder / "local"):
        sys.exit("error: the logs differ")
    opened = checkpoint.open_run("gs://bucket/run", "raw").experts["high"]
    expected = launching.final_state(folder / "local")
    parts = ocp.load_checkpointables(opened.folder)
    found = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(
        {name: parts[name] for name in ("params", "ema", "optimizer")})}  # fmt: skip
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    if different or expected.keys() != found.keys():
        sys.exit(f"error: {len(different)} of {len(expected)} arrays differ, such as {different[:3]}")
    steps = sorted({int(name.split("/")[3]) for name in store.objects if name.startswith("run/high/checkpoints/")
                    and name.split("/")[3].isdigit()})  # fmt: skip
    if len(steps) != 2 or (ROOT / "gs:").exists() or (folder / "gs:").exists():
        sys.exit(f"error: checkpoints of steps {steps} in the store, expected the newest two and none elsewhere")
    print(f"gs://bucket/run, killed once and resumed: all {len(found)} arrays at step {opened.step} are bit for bit "
          f"those of a local run; kept steps {steps}; {len(store.objects)} objects; {opened.fingerprint[:12]}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
