"""Downloads from a server on 127.0.0.1."""

import dataclasses
import hashlib
import http.server
import re
import threading

import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.weights import __main__ as cli
from l2l_jax.weights import published

CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """A handler that serves CONTENT, supports ranges, and can interrupt a response."""

    def do_GET(self):  # noqa: N802  (the name that http.server asks for)
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if self.path != "/weights.pth":
            self.send_error(404)
            return
        start, requested = 0, self.headers.get("Range")
        if requested and self.headers.get("If-Range") == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1])
            if start >= len(CONTENT):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = server.breaks.pop(0) if server.breaks else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.etag, running.breaks, running.ranges = '"1"', [], []
        running.content_type = "application/octet-stream"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def file(server):
    fields = dict(
        name="test", holds="Made-up weights", file="weights.pth", page="https://example.org/weights"
    )
    fields |= dict(licence="CC0", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    return published.PublishedFile(url=url, **fields)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_is_downloaded_once(server, file, tmp_path, capsys):
    folder = tmp_path / "new" / "weights"
    assert published.fetch(file, folder).read_bytes() == CONTENT
    output = capsys.readouterr().out
    for part in ("0.3 MB", "license: CC0", file.sha256, file.url):
        assert part in output
    assert names(folder) == ["weights.pth"]
    published.fetch(file, folder)
    assert len(server.ranges) == 1
    assert "already exists" in capsys.readouterr().out


def test_interrupted_download_resumes(server, file, tmp_path):
    server.breaks = [100_000, 250_000]
    for _ in range(2):
        with pytest.raises(UserError, match=r"(?s)Rerun the command to resume.*curl -L -o weights.pth"):
            published.fetch(file, tmp_path)
        assert "weights.pth" not in names(tmp_path)
    assert published.fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=250000-"]
    assert names(tmp_path) == ["weights.pth"]


def test_changed_file_is_downloaded_again(server, file, tmp_path):
    server.breaks = [100_000]
    with pytest.raises(UserError):
        published.fetch(file, tmp_path)
    server.etag = '"2"'
    assert published.fetch(file, tmp_path).read_bytes() == CONTENT


def test_invalid_partial_file_is_downloaded_again(server, file, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "weights.pth.part.version").write_text(server.etag)
    assert published.fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT) + 4}-", None]
    (tmp_path / "weights.pth").unlink()
    (tmp_path / "weights.pth.part").write_bytes(b"of another file")
    (tmp_path / "weights.pth.part.version").write_text(server.etag)
    with pytest.raises(UserError, match="is not the published file.* rerun the command"):
        published.fetch(file, tmp_path)
    assert published.fetch(file, tmp_path).read_bytes() == CONTENT


def test_wrong_content_is_rejected(file, tmp_path, capsys):
    other = dataclasses.replace(file, sha256="0" * 64)
    with pytest.raises(UserError, match="is not the published file: it should have SHA-256 0000"):
        published.fetch(other, tmp_path)
    assert names(tmp_path) == []
    published.fetch(dataclasses.replace(file, sha256=None, size=None), tmp_path)
    output = capsys.readouterr().out
    assert "size not known" in output and file.sha256 in output
    assert "No checksum of this file is known" in output
    (tmp_path / "weights.pth").write_bytes(b"other")
    with pytest.raises(UserError, match="is not the published file"):
        published.fetch(file, tmp_path)


NEWS = "sends a web page instead of a file; open https://example.org/weights"
GONE = r"(?s)127.0.0.1:9 cannot be reached.*curl -L -o weights.pth 'http"


@pytest.mark.parametrize(
    "change, content_type, message",
    [
        ({}, "text/html; charset=utf-8", NEWS),
        ({"url": "http://127.0.0.1:9/weights.pth"}, "", GONE),
        ({"url": "/x"}, "", r"answers 404 Not Found.*Without a connection"),
        ({"url": ""}, "", "only a browser can download it: https://example.org/weights"),
    ],
)
def test_errors_if_a_file_is_unavailable(server, file, tmp_path, change, content_type, message):
    server.content_type = content_type or server.content_type
    if change.get("url") == "/x":
        change = {"url": file.url + "x"}
    with pytest.raises(UserError, match=message):
        published.fetch(dataclasses.replace(file, **change), tmp_path)
    assert names(tmp_path) == []


def test_fetch_command(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "PUBLISHED", {"test": file})
    monkeypatch.setenv("L2L_JAX_WEIGHTS", str(tmp_path / "weights"))
    assert cli.main(["fetch", "test"]) == 0
    assert (tmp_path / "weights" / "weights.pth").read_bytes() == CONTENT
    assert cli.main(["fetch"]) == 0
    assert "Made-up weights; 0.3 MB; CC0" in capsys.readouterr().out


def test_published_files():
    for name, file in published.PUBLISHED.items():
        assert file.name == name and file.licence and file.page.startswith("https://")
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert not file.url or file.url.startswith(("https://", "http://places2.csail.mit.edu/"))
