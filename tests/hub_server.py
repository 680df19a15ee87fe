"""As much of the Hugging Face Hub as a download needs, on this machine: repositories are dictionaries of files."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

SHA = "5be1f2d2f1d5c6a5f8c3c0e7b1d4a3f2e1c0b9a8"


class Hub:
    """What is served, what fails, and what was asked for.

    Attributes:
        repositories: name -> path -> bytes, at the revisions in ``revisions``.
        refused: (part of a path, HTTP status, the Hub's error code) of requests that fail.
        fetched: paths of files whose bytes were sent.
    """

    def __init__(self, repositories):
        self.repositories, self.revisions = repositories, {"main", "v1", SHA}
        self.refused, self.fetched, self.url = [], [], ""

    @contextlib.contextmanager
    def running(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        for part, status, code in self.hub.refused:
            if part in path:
                return self.answer(status, X_Error_Code=code)
        words = path.removeprefix("api/models/").split("/")
        files = self.hub.repositories.get("/".join(words[:2]))
        if files is None:
            return self.answer(401, X_Error_Code="RepoNotFound")  # the Hub does not tell strangers what is private
        what, revision, inside = words[2], words[3], "/".join(words[4:])
        if revision not in self.hub.revisions:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if what == "revision":
            listed = [{"rfilename": file} for file in files]
            return self.json({"id": "/".join(words[:2]), "sha": SHA, "siblings": listed})
        if what == "tree":
            return self.json([{"type": "file", "path": file, "size": len(content), "oid": _etag(content)}
                              for file, content in files.items()])  # fmt: skip
        if inside not in files:
            return self.answer(404, X_Error_Code="EntryNotFound")
        if self.command == "GET":
            self.hub.fetched.append(inside)
        self.answer(200, files[inside], ETag=f'"{_etag(files[inside])}"', X_Repo_Commit=SHA)

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")


def _etag(content):
    return hashlib.sha1(content).hexdigest()
