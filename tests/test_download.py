"""The downloader against a small server of our own that misbehaves on request."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from samsvae.data.download import fetch, verify
from samsvae.errors import DownloadError

BODY = np.random.default_rng(0).bytes(300_000)
SIZE, MD5 = len(BODY), f"md5:{hashlib.md5(BODY).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def whole(self, body=BODY):
        """All of it, or the range asked for."""
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))
        if not start:
            return self.answer(200, body)
        self.answer(206, body[start:], Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")

    def do_GET(self):
        seen = self.server.seen
        seen.append((self.path, self.headers.get("Range")))
        first = sum(path == self.path for path, _ in seen) == 1
        asked = self.headers.get("Range")
        match self.path:
            case "/good":
                self.whole()
            case "/missing":
                self.answer(404)
            case "/challenge":
                self.answer(202, x_amzn_waf_action="challenge")
            case "/empty":
                self.answer(200, b"", length=0)
            case "/html":
                self.answer(200, b"<!DOCTYPE html><p>Sign in", Content_Type="text/html; charset=utf-8")
            case "/html-untold":  # of the right length and with no word of what it is
                self.answer(200, b"\n<html>" + b"x" * (SIZE - 7))
            case "/short":
                self.answer(200, BODY[:-5])
            case "/long":
                self.answer(200, BODY + b"more")
            case "/wrong":
                self.whole(BODY[::-1])
            case "/cut":  # the connection breaks on the first request
                self.answer(200, BODY[:100_000], length=SIZE) if first else self.whole()
            case "/cut-no-range":  # it breaks, and the server knows no ranges
                self.answer(200, BODY[:100_000] if first else BODY, length=SIZE)
            case "/always-cut":
                self.answer(200, BODY[:100_000], length=SIZE)
            case "/busy":
                self.answer(503, Retry_After="0") if first else self.whole()
            case "/down":
                self.answer(500)
            case "/other-range" if asked:  # not the range that was asked for
                self.answer(206, BODY[7:], Content_Range=f"bytes 7-{SIZE - 1}/{SIZE}")
            case "/no-resume" if asked:
                self.answer(416)
            case _:
                self.whole()


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.seen = []
        thread = threading.Thread(target=http.serve_forever, args=[0.01], daemon=True)
        thread.start()
        http.url = f"http://127.0.0.1:{http.server_port}"
        yield http
        http.shutdown()


def get(server, target, *paths, checksum=MD5, tries=3):
    return fetch([server.url + path for path in paths], target, SIZE, checksum, tries=tries, pause=0.01, timeout=10)


@pytest.mark.parametrize("checksum", [MD5, SHA256])
def test_a_file_arrives(server, tmp_path, checksum):
    target = get(server, tmp_path / "deep" / "file", "/good", checksum=checksum)
    assert target.read_bytes() == BODY
    assert not target.with_name("file.part").exists()
    get(server, target, "/good", checksum=checksum)
    assert len(server.seen) == 1, "a file that is there and right is not fetched again"


@pytest.mark.parametrize(
    ("path", "requests"),
    [("/cut", [None, "bytes=65536-"]), ("/cut-no-range", [None, "bytes=65536-"]), ("/busy", [None, None])],
)
def test_a_broken_transfer_is_taken_up_again(server, tmp_path, path, requests):
    assert get(server, tmp_path / "file", path).read_bytes() == BODY
    assert [asked for _, asked in server.seen] == requests


@pytest.mark.parametrize("path", ["/good", "/no-resume", "/other-range"])
@pytest.mark.parametrize("start", [BODY[:1000], b"x" * 1000, b"x" * SIZE, b"x" * (SIZE + 1)])
def test_a_part_of_an_earlier_call_never_spoils_the_file(server, tmp_path, path, start):
    (tmp_path / "file.part").write_bytes(start)
    assert get(server, tmp_path / "file", path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "came"),
    [
        ("/missing", "HTTP 404 Not Found"),
        ("/challenge", "HTTP 202 Accepted without the file .x-amzn-waf-action: challenge"),
        ("/empty", "a file of 0 bytes"),
        ("/html", "HTML page in place of the file .Content-Type text/html"),
        ("/html-untold", "HTML page in place of the file .it begins"),
        ("/short", "a file of 299,995 bytes"),
        ("/long", "a file of 300,004 bytes"),
        ("/wrong", f"with md5:{hashlib.md5(BODY[::-1]).hexdigest()}"),
        ("/always-cut", "3 tries without progress"),
        ("/down", "HTTP 500 .*3 tries"),
    ],
)
def test_what_is_not_the_file_is_told_and_the_old_file_stays(server, tmp_path, path, came):
    target = tmp_path / "file"
    target.write_bytes(b"older")
    with pytest.raises(DownloadError, match=rf"expected 300,000 bytes with {MD5}; came: .*{path}: .*{came}"):
        get(server, target, path)
    assert target.read_bytes() == b"older"


def test_mirrors_are_tried_in_order(server, tmp_path):
    assert get(server, tmp_path / "file", "/missing", "/wrong", "/html", "/good").read_bytes() == BODY
    assert list(dict.fromkeys(path for path, _ in server.seen)) == ["/missing", "/wrong", "/html", "/good"]


def test_no_server_and_no_address(tmp_path):
    for url, came in (("http://127.0.0.1:9/x", "connection failed"), ("figshare/1", "not an address")):
        with pytest.raises(DownloadError, match=came):
            fetch(url, tmp_path / "file", SIZE, MD5, tries=1, pause=0.01)


def test_two_downloads_of_one_file_do_not_mix(server, tmp_path):
    import fcntl

    with open(tmp_path / ".file.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match=r"another process"):
            get(server, tmp_path / "file", "/good")
    assert get(server, tmp_path / "file", "/good").exists()


def test_no_space_is_told_at_once(server, tmp_path):
    (tmp_path / "file.part").mkdir()  # stands for any part that cannot be written
    with pytest.raises(DownloadError, match=r"cannot be written"):
        get(server, tmp_path / "file", "/good")


def test_verify(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(DownloadError, match=r"no such file"):
        verify(path, SIZE, MD5)
    path.write_bytes(BODY)
    assert verify(path, SIZE, MD5) == verify(path, SIZE, SHA256) == path
    with pytest.raises(DownloadError, match=r"expected 300,001 bytes, found 300,000"):
        verify(path, SIZE + 1, MD5)
    with pytest.raises(DownloadError, match=rf"expected md5:{'0' * 32}, found {MD5}"):
        verify(path, SIZE, f"md5:{'0' * 32}")
    with pytest.raises(DownloadError, match=r"'crc:1' is not understood"):
        verify(path, SIZE, "crc:1")
