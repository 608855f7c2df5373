"""The downloader against a small local server that misbehaves on request."""

from __future__ import annotations

import email.utils
import errno
import fcntl
import gzip
import hashlib
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from samsvae.errors import DownloadError
from samsvae.files import recorded_checksum
from samsvae.screens import download, partial_file
from samsvae.screens.download import OVERLAP, READ, fetch, verify

BODY = np.random.default_rng(0).bytes(1_500_000)
OTHER = np.random.default_rng(1).bytes(len(BODY))
SIZE, MD5 = len(BODY), f"md5:{hashlib.md5(BODY).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
GOOD = 700_000  # bytes of a good part
HALF = BODY[: SIZE // 2] + OTHER[SIZE // 2 :]  # right up to the middle
HTML = b"\n<HTML>" + b"x" * (SIZE - 7)


class Handler(BaseHTTPRequestHandler):
    """Handles one request each. `start`: the first requested byte; `nth`: number of earlier requests at this path."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", length=None, **headers):
        """A status, headers, `body`, and the connection closed after it, whatever `length` promises."""
        self.send_response(status)
        if length != "none":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def serve(self, body=BODY, end=SIZE, **headers):
        """Send the requested part of `body`, cut off before byte `end`."""
        if "Range" not in self.headers:
            return self.answer(200, body[:end], length=len(body), **headers)
        span = {"Content_Range": f"bytes {self.start}-{len(body) - 1}/{len(body)}"}
        self.answer(206, body[self.start : end], length=len(body) - self.start, **span | headers)

    def chunked(self, body):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for first in range(0, len(body), 50_000):
            block = body[first : first + 50_000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        asked = self.headers.get("Range")
        self.start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.nth = sum(path == self.path for path, _ in self.server.seen)
        self.server.seen.append((self.path, self.start if asked else None))
        try:
            BEHAVIOURS[self.path.strip("/")](self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def stall(to, body=BODY):
    """Send the beginning, then nothing."""
    to.answer(200, body[:GOOD], length=SIZE) if not to.start else to.serve(end=min(to.start + 500_000, SIZE))
    to.wfile.flush()
    to.server.over.wait(20)


def trickle(to):
    """Send the complete file, slowly enough to be killed meanwhile."""
    to.answer(
        206, b"", SIZE - to.start, Content_Range=f"bytes {to.start}-{SIZE - 1}/{SIZE}"
    ) if to.start else to.answer(200, b"", SIZE)
    for first in range(to.start, SIZE, 16_384):
        to.wfile.write(BODY[first : first + 16_384])
        time.sleep(0.01)


def moved(to):
    """Redirect to an address that works only once."""
    to.answer(302, Location=f"/signed?{to.nth}")


def endless(to, status, **headers):
    """An answer with a body that never ends; the server counts the blocks that it could send."""
    to.send_response(status)
    to.send_header("Connection", "close")
    for name, value in headers.items():
        to.send_header(name, value)
    to.end_headers()
    to.close_connection = True
    block = bytes(1 << 20)
    while to.server.sent < 60 and not to.server.over.is_set():
        to.wfile.write(block)
        to.server.sent += 1


def mood(to):
    """Behave in a random way."""
    name = to.server.chance.choice([*RIGHT, *NEVER])
    BEHAVIOURS[name.strip("/")](to)


def complete_only(to, body=BODY, end=SIZE):
    """A server that does not support ranges."""
    to.answer(200, body[:end], length=len(body))


def later(seconds):
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


def span(first, total):
    return {"Content_Range": f"bytes {first}-{SIZE - 1}/{total}"}


# Behaviours that give the correct file in the end without help.
RIGHT = {
    "/good": lambda to: to.serve(),
    "/cut": lambda to: to.serve(end=GOOD) if not to.nth else to.serve(),
    "/cut-often": lambda to: to.serve(end=to.start + 70_000 + to.nth * 12_345),
    "/cut-no-range": lambda to: complete_only(to, end=GOOD if not to.nth else SIZE),
    "/refuses-range": lambda to: to.answer(416) if to.start else to.serve(end=GOOD if to.nth < 3 else SIZE),
    "/other-range": lambda to: (
        to.answer(206, BODY[7:], **span(7, SIZE)) if to.start else to.serve(end=GOOD if to.nth < 3 else SIZE)
    ),
    "/no-length": lambda to: to.answer(200, BODY, length="none"),
    "/chunked": lambda to: to.chunked(BODY),
    "/chunked-cut": lambda to: to.chunked(BODY[:GOOD]) if not to.nth else to.serve(),
    "/chunked-too-long": lambda to: to.chunked(BODY + OTHER),
    "/little-by-little": lambda to: to.answer(
        206, BODY[to.start : to.start + 200_000], Content_Range=f"bytes {to.start}-{to.start + 199_999}/{SIZE}"
    ),
    "/total-unknown": lambda to: (
        to.serve(end=GOOD) if not to.nth else to.answer(206, BODY[to.start :], **span(to.start, "*"))
    ),
    "/gzip": lambda to: to.answer(200, gzip.compress(BODY, 1), Content_Encoding="gzip"),
    "/gzip-on-resume": lambda to: (
        to.answer(206, gzip.compress(BODY)[to.start :], Content_Encoding="gzip", **span(to.start, SIZE))
        if to.start
        else to.serve(end=GOOD if to.nth < 3 else SIZE)
    ),
    "/gzip-if-wanted": lambda to: to.answer(406) if "gzip" in to.headers.get("Accept-Encoding", "") else to.serve(),
    "/etag-changes": lambda to: to.serve(end=SIZE if to.nth else GOOD, ETag=f'"{to.nth}"'),
    "/busy": lambda to: to.answer(503, Retry_After="0") if not to.nth else to.serve(),
    "/too-many": lambda to: to.answer(429, Retry_After=later(-5)) if not to.nth else to.serve(),
    "/odd-wait": lambda to: to.answer(408, Retry_After="soon") if not to.nth else to.serve(),
    "/moved": moved,
    "/moved-endlessly": lambda to: endless(to, 302, Location="/good"),
    "/stall": stall,
}
# Behaviours that never give the correct file, and their messages (from the start | on resuming, if different).
NEVER = {
    "/missing": (lambda to: to.answer(404), "HTTP 404 Not Found without the file"),
    "/forbidden": (lambda to: to.answer(403, b"<?xml?><Error/>"), "HTTP 403 Forbidden without the file"),
    "/challenge": (
        lambda to: to.answer(202, x_amzn_waf_action="challenge"),
        "HTTP 202 Accepted without the file .x-amzn-waf-action: challenge",
    ),
    "/empty": (lambda to: to.answer(200), "for a file of 0 bytes"),
    "/html": (
        lambda to: to.answer(200, b"<p>Sign in", Content_Type="Text/HTML; charset=utf-8"),
        "HTTP 200 OK with an HTML page instead of the file .Content-Type Text/HTML",
    ),
    "/html-unlabelled": (lambda to: to.answer(200, HTML), "an HTML page instead of the file .it begins b'.n<HTML>x"),
    "/html-as-range": (
        lambda to: to.answer(206, HTML[: SIZE - to.start], **span(to.start, SIZE)),
        "an HTML page instead of the file .it begins",
    ),
    "/short": (lambda to: to.serve(BODY[:-5]), "for a file of 1,499,995 bytes"),
    "/long": (lambda to: to.serve(BODY + b"more"), "for a file of 1,500,004 bytes"),
    "/short-of-range": (
        lambda to: to.answer(416, Content_Range="bytes */500000") if to.start else to.answer(404),
        "HTTP 404 Not Found|HTTP 416 .* for a file of 500,000 bytes",
    ),
    "/wrong": (
        lambda to: to.serve(OTHER),
        f"md5:{hashlib.md5(OTHER).hexdigest()}|bytes that differ from file.part near",
    ),
    "/wrong-no-range": (
        lambda to: complete_only(to, OTHER),
        "length, but with md5|bytes that differ from file.part near",
    ),
    "/wrong-half": (lambda to: to.serve(HALF), f"length, but with md5:{hashlib.md5(HALF).hexdigest()}"),
    "/wrong-chunked-too-long": (lambda to: to.chunked(OTHER + OTHER), "length, but with md5|bytes that differ"),
    "/never-a-range": (
        lambda to: to.answer(206, BODY[7:], **span(7, SIZE)),
        r"HTTP 206 .*\(bytes 7-1499999/1500000\) to a request for the bytes from 0 on",
    ),
    "/refuses": (lambda to: to.answer(416), "HTTP 416 .* to a request for the bytes from 0 on"),
    "/not-gzip": (lambda to: to.answer(200, OTHER, Content_Encoding="gzip"), "connection failed .*3 tries"),
    "/down": (lambda to: to.answer(500), "HTTP 500 .*gave up after 3 tries without progress"),
    "/always-cut": (lambda to: to.serve(end=to.start), "connection failed .*3 tries"),
    "/chunked-short": (
        lambda to: to.chunked(BODY[:60_000]),
        "response ended after 60,000 of 1,500,000 bytes .*3 tries",
    ),
    "/loop": (lambda to: to.answer(302, Location="/loop"), "connection failed .*redirects.*3 tries"),
    "/endless-error": (lambda to: endless(to, 404), "HTTP 404 Not Found without the file"),
    "/endless-failure": (lambda to: endless(to, 503), "HTTP 503 .*gave up after 3 tries"),
    "/hang-up": (lambda to: setattr(to, "close_connection", True), "connection failed .*3 tries"),
    "/silence": (lambda to: to.server.over.wait(20), "connection failed .*timed out.*3 tries"),
}
BEHAVIOURS = {
    "slow": trickle,
    "mood": mood,
    "junk": lambda to: to.chunked(b"try again later " * 5_000),
    "recants": lambda to: complete_only(
        to, BODY[: GOOD - 100_000 * (to.nth + 1)] + OTHER[: SIZE - GOOD + 100_000 * (to.nth + 1)]
    ),
    "wrong-half-later": lambda to: to.serve(HALF, end=1_100_000 if to.nth < 4 else SIZE),
    "stub": lambda to: complete_only(to, end=GOOD),
    "fickle": lambda to: to.serve(np.random.default_rng(to.nth).bytes(SIZE), end=GOOD, ETag=f'"{to.nth}"'),
    "new-version": lambda to: to.serve(BODY if to.nth else OTHER, end=SIZE if to.nth else GOOD, ETag=f'"{to.nth}"'),
    **{path.strip("/"): behaviour for path, behaviour in RIGHT.items()},
    **{path.strip("/"): behaviour for path, (behaviour, _) in NEVER.items()},
    **{
        f"signed?{n}": lambda to: to.serve(end=GOOD + 300_000 * int(to.path[-1])) if not to.nth else to.answer(403)
        for n in range(9)
    },
}


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.seen, http.over, http.chance, http.sent = [], threading.Event(), random.Random(0), 0
        threading.Thread(target=http.serve_forever, args=[0.01], daemon=True).start()
        http.url = f"http://127.0.0.1:{http.server_port}"
        yield http
        http.over.set()
        http.shutdown()


@pytest.fixture
def sleeps(monkeypatch):
    """The waits between tries, recorded instead of waited for."""
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    return waits


def get(server, target, *paths, checksum=MD5, tries=3, timeout=10.0, pause=0.001):
    addresses = [server.url + path for path in paths]
    return fetch(addresses, target, SIZE, checksum, tries=tries, pause=pause, timeout=timeout)


def starts(server, path):
    return [start for seen, start in server.seen if seen == path]


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def part(tmp_path):
    return tmp_path / "file.part"


@pytest.mark.parametrize("checksum", [MD5, SHA256, MD5[:4] + MD5[4:].upper()])
def test_a_file_arrives(server, tmp_path, checksum):
    target = get(server, tmp_path / "deep" / "fi[l]e", "/good", checksum=checksum)
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["fi[l]e"], "no other file is left"
    get(server, target, "/good", checksum=checksum)
    assert server.seen == [("/good", None)], "a correct existing file is not downloaded again"
    assert [path.name for path in target.parent.iterdir()] == ["fi[l]e"]


@pytest.mark.parametrize("path", RIGHT)
def test_a_tolerable_misbehaviour_still_gives_the_file(server, target, path, caplog):
    caplog.set_level(logging.INFO)
    assert get(server, target, path, timeout=0.5).read_bytes() == BODY
    assert os.listdir(target.parent) == ["file"]
    assert "again" not in caplog.text, "a reconnection keeps the hash: nothing is read a second time"


@pytest.mark.parametrize("path", ["/moved-endlessly", "/endless-error", "/endless-failure"])
def test_the_body_of_an_answer_without_the_file_is_not_read(server, target, path):
    """A redirect or an error with an endless body would fill the memory."""
    if path in RIGHT:
        assert get(server, target, path).read_bytes() == BODY
    else:
        with pytest.raises(DownloadError, match=NEVER[path][1]):
            get(server, target, path)
    assert server.sent < 30  # MiB, in buffers of sockets


@pytest.mark.parametrize("path", RIGHT)
def test_each_of_them_resumes_from_a_good_part(server, target, part, path):
    part.write_bytes(BODY[:GOOD])
    assert get(server, target, path, timeout=0.5).read_bytes() == BODY
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/cut", [None, GOOD]),
        ("/cut-no-range", [None, GOOD]),
        ("/refuses-range", [None, GOOD, None, GOOD, None]),  # refused, cut again, refused again
        ("/etag-changes", [None, GOOD]),
        ("/moved", [None, GOOD, GOOD + 300_000, GOOD + 600_000]),
        ("/busy", [None, None]),
    ],
)
def test_the_ranges_requested_after_a_break(server, target, path, asked):
    """They start at the last bytes, which are compared, and go to the original address, not to its redirect."""
    get(server, target, path)
    for start, end in zip(starts(server, path), asked, strict=True):
        assert start is end is None or end - OVERLAP - READ < start <= end - OVERLAP


@pytest.mark.parametrize("path", NEVER)
def test_a_wrong_response_is_reported_and_the_old_file_stays(server, target, path):
    target.write_bytes(b"older")
    with pytest.raises(DownloadError) as error:
        get(server, target, path, timeout=0.2)
    expected = f"{target}: expected 1,500,000 bytes with {MD5}, but received: {server.url}{path}: "
    assert str(error.value).startswith(expected) and re.search(NEVER[path][1], str(error.value))
    assert target.read_bytes() == b"older"


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("path", NEVER)
def test_no_response_destroys_a_good_part(server, target, part, path, noted):
    """A good part survives every bad response, and the download resumes from it."""
    part.write_bytes(BODY[:GOOD])
    if noted:
        part.with_name("file.part.json").write_text(json.dumps([[0, f"{server.url}/good", ""]]))
    with pytest.raises(DownloadError, match=NEVER[path][1]):
        get(server, target, path, timeout=0.2)
    assert not target.exists()
    assert part.read_bytes()[:GOOD] == BODY[:GOOD]
    assert get(server, target, "/good").read_bytes() == BODY
    assert starts(server, "/good")[0] >= GOOD - OVERLAP
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize("path", NEVER)
def test_the_next_address_helps(server, target, path):
    assert get(server, target, path, "/good", timeout=0.2).read_bytes() == BODY
    assert os.listdir(target.parent) == ["file"]


def test_mirrors_are_tried_in_order(server, target):
    get(server, target, "/missing", "/wrong", "/html", "/good", "/cut")
    assert list(dict.fromkeys(path for path, _ in server.seen)) == ["/missing", "/wrong", "/html", "/good"]


def test_a_mirror_whose_second_half_is_wrong_costs_only_what_came_from_it(server, target, part):
    part.write_bytes(BODY[:GOOD])
    get(server, target, "/wrong-half", "/good")
    assert [path for path, _ in server.seen] == ["/wrong-half", "/good"]
    assert starts(server, "/good") == [GOOD - OVERLAP]


def test_a_later_call_knows_the_source_of_each_stretch(server, target, part):
    for path in ("/stub", "/wrong-half-later"):
        with pytest.raises(DownloadError, match="3 tries without progress"):
            get(server, target, path)
    assert part.stat().st_size > SIZE // 2 and part.read_bytes() != BODY[: part.stat().st_size]
    get(server, target, "/wrong-half-later", "/good")
    assert GOOD - OVERLAP - READ < starts(server, "/good")[0] <= GOOD - OVERLAP


@pytest.mark.parametrize("paths", [["/junk", "/good"], ["/junk", "/wrong", "/good"], ["/junk", "/cut", "/missing"]])
def test_junk_from_one_address_does_not_block_the_next(server, target, paths):
    """80,000 bytes without a stated length look like the beginning of the file."""
    assert get(server, target, *paths).read_bytes() == BODY
    assert os.listdir(target.parent) == ["file"]


def test_another_file_at_the_same_address_is_not_mixed_with_the_first(server, target):
    """The response breaks off and the file is replaced by another version, the correct one: start in a second part."""
    assert get(server, target, "/new-version").read_bytes() == BODY
    assert [start is None for start in starts(server, "/new-version")] == [True, False, True]


def test_a_file_that_changes_each_time_is_given_up(server, target, part):
    with pytest.raises(DownloadError, match=r"bytes that differ from file\.part2 near"):
        get(server, target, "/fickle")
    assert len(server.seen) == 4
    assert part.exists() and not target.exists()


@pytest.mark.parametrize("path", ["/good", "/refuses-range", "/other-range", "/cut-no-range"])
@pytest.mark.parametrize("length", [1, 1000, OVERLAP + 1, SIZE - 1, SIZE, SIZE + 1])
def test_a_wrong_part_never_spoils_the_file(server, target, part, path, length):
    part.write_bytes((OTHER + b"x")[:length])
    assert get(server, target, path).read_bytes() == BODY
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize(
    "note", ["", "{}", "[[0]]", "null", '[["x", 1, 2]]', "[[1000, 7, null]]", "[[-1, 2, 3]]", b"\xff\x00"]
)
def test_a_damaged_note_does_no_harm(server, target, part, note):
    part.write_bytes(BODY[:GOOD])
    (target.parent / "file.part.json").write_bytes(note if isinstance(note, bytes) else note.encode())
    assert get(server, target, "/good").read_bytes() == BODY
    assert server.seen == [("/good", GOOD - OVERLAP)]


@pytest.mark.parametrize("stretches", [[[0, "/good"], [900_000, "/wrong-half"]], [[1000, "/wrong-half"]]])
def test_a_note_that_does_not_fit_the_part_does_not_destroy_it(server, target, part, stretches):
    """As after a power cut that lost the end of the part, or with the note of another part."""
    part.write_bytes(BODY[:GOOD])
    note = [[first, server.url + path, ""] for first, path in stretches]
    part.with_name("file.part.json").write_text(json.dumps(note))
    get(server, target, "/wrong-half", "/good")
    assert starts(server, "/good") == [GOOD - OVERLAP]


@pytest.mark.parametrize("path", ["/good", "/cut-no-range"])
@pytest.mark.parametrize("have", [GOOD, SIZE])
@pytest.mark.parametrize("damaged", [1, 4096, OVERLAP, OVERLAP + 1, 300_000])
@pytest.mark.parametrize("filler", [bytes(SIZE), OTHER])
def test_a_damaged_end_is_cut_off(server, target, part, have, damaged, filler, path):
    """As after a power cut: zeros or old disk blocks. The rest is not downloaded again."""
    part.write_bytes(BODY[: have - damaged] + filler[:damaged])
    assert get(server, target, path).read_bytes() == BODY
    if path == "/good":
        asked = starts(server, path)
        assert asked[-1] >= have - damaged - OVERLAP - READ, "the last request goes on before the damage"
        assert len(asked) <= 3
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize("noted", [True, False])
def test_damage_far_from_the_end_needs_a_new_start(server, target, part, noted):
    part.write_bytes(OTHER[:100] + BODY[100:GOOD])
    if noted:
        part.with_name("file.part.json").write_text(json.dumps([[0, f"{server.url}/good", ""]]))
    assert get(server, target, "/good").read_bytes() == BODY
    assert starts(server, "/good") == [GOOD - OVERLAP, None]


def test_only_the_end_of_a_part_is_ever_cut_off(server, target, part, monkeypatch):
    monkeypatch.setattr(download, "MAX_CUT", 200_000)
    part.write_bytes(BODY[:200_000] + OTHER[200_000:GOOD])
    with pytest.raises(DownloadError, match=r"bytes that differ from file\.part near"):
        get(server, target, "/stub")
    assert part.stat().st_size == GOOD


def test_a_wrong_size_or_checksum_from_the_user_destroys_no_part(server, target, part):
    part.write_bytes(BODY[:GOOD])
    for size, checksum in ((GOOD - 99, MD5), (SIZE + 99, MD5), (SIZE, "md5:1"), (99, SHA256)):
        with pytest.raises(DownloadError):
            fetch(server.url + "/good", target, size, checksum)
        assert part.read_bytes() == BODY[:GOOD]


def test_a_server_that_contradicts_itself_cuts_a_part_once(server, target, part):
    """It contradicts 100,000 more bytes with each request."""
    part.write_bytes(BODY[:GOOD])
    with pytest.raises(DownloadError, match=r"bytes that differ from file\.part near"):
        get(server, target, "/recants")
    assert GOOD - 100_000 - READ <= part.stat().st_size < GOOD


@pytest.mark.parametrize("surplus", [b"", b"garbage"])
def test_a_complete_part_needs_no_server(target, part, surplus):
    part.write_bytes(BODY + surplus)
    assert fetch("http://127.0.0.1:9/x", target, SIZE, MD5).read_bytes() == BODY


@pytest.mark.parametrize("seed", range(6))
def test_no_server_behaviour_gives_a_wrong_file(server, target, part, seed):
    """Each request gets a random response, correct or wrong."""
    server.chance.seed(seed)
    for _ in range(4):
        try:
            get(server, target, "/mood", "/mood", timeout=0.1)
        except DownloadError:
            assert not target.exists()
        else:
            assert target.read_bytes() == BODY
            break
    assert get(server, target, "/good").read_bytes() == BODY
    assert os.listdir(target.parent) == ["file"]


def test_waits_double_up_to_a_minute(server, target, sleeps):
    with pytest.raises(DownloadError, match="gave up after 9 tries"):
        get(server, target, "/down", tries=9, pause=1.0)
    assert sleeps == [1, 2, 4, 8, 16, 32, 60, 60][: len(sleeps)] and len(sleeps) == 8


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        (lambda: "7", 7, 7),
        (lambda: later(100), 80, 100),
        (lambda: later(-100), 0.5, 0.5),
        (lambda: "100000", 600, 600),
        (lambda: "soon", 0.5, 0.5),
    ],
)
def test_retry_after_is_respected(server, target, sleeps, monkeypatch, asked, least, most):
    again = lambda to: to.answer(503, Retry_After=asked()) if not to.nth else to.serve()  # noqa: E731
    monkeypatch.setitem(BEHAVIOURS, "again", again)
    get(server, target, "/again", pause=0.5)
    assert len(sleeps) == 1 and least <= sleeps[0] <= most


def test_tries_count_only_without_progress(server, target, sleeps):
    """More breaks than tries are fine if each try receives something."""
    get(server, target, "/cut-often", tries=2, pause=1.0)
    assert len(server.seen) > 5 and set(sleeps) == {1.0}


def test_no_server_and_no_address(target):
    for url, came in (
        ("http://127.0.0.1:9/x", "connection failed"),
        ("figshare/1", "not a valid address"),
        ("http://[", "not a valid address"),
    ):
        with pytest.raises(DownloadError, match=came):
            fetch(url, target, SIZE, MD5, tries=1, pause=0.01)
    assert os.listdir(target.parent) == [], "an empty part is useless"


@pytest.mark.parametrize("checksum", ["crc:1", "md5:", "md5:123", SHA256[:-1], "sha256:" + "g" * 64])
def test_an_invalid_checksum_is_reported_first(target, checksum):
    for use in (lambda: fetch("http://127.0.0.1:9/x", target, SIZE, checksum), lambda: verify(target, SIZE, checksum)):
        with pytest.raises(DownloadError, match=rf"'{checksum}' is not allowed"):
            use()


def test_two_downloads_of_one_file_do_not_mix(server, target, part):
    with open(part, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match=r"file\.part: another process"):
            get(server, target, "/good")
    assert get(server, target, "/good").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_download_that_ended_meanwhile_is_noticed(server, target, part, monkeypatch, finished):
    """Another process renames or removes the part after we open it and before we lock it."""
    part.write_bytes(BODY)
    lock, ends = fcntl.flock, [lambda: part.rename(target) if finished else part.unlink()]

    def late(*args):
        if ends:
            ends.pop()()
        return lock(*args)

    monkeypatch.setattr(partial_file.fcntl, "flock", late)
    assert get(server, target, "/good").read_bytes() == BODY
    assert len(server.seen) == (not finished) and os.listdir(target.parent) == ["file"]


def test_a_file_system_without_locks_is_warned_about(server, target, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(partial_file.fcntl, "flock", none)
    assert get(server, target, "/good").read_bytes() == BODY
    assert "do not run two downloads of it at once" in caplog.text


def test_disk_space_is_checked_first(server, target, part, monkeypatch):
    """For the missing bytes, not for the complete file."""
    part.write_bytes(BODY[:GOOD])
    room = SIZE - GOOD - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(room * 10, 0, room))
    with pytest.raises(DownloadError, match=r"file\.part: 800,000 bytes are missing, but only 799,999 are free"):
        get(server, target, "/good")
    assert not server.seen and part.read_bytes() == BODY[:GOOD]
    room += 1
    assert get(server, target, "/good").exists()


def test_a_part_that_cannot_be_written_is_reported_at_once(server, target, part):
    part.mkdir()
    with pytest.raises(DownloadError, match=r"cannot be written"):
        get(server, target, "/good")
    assert not server.seen


def test_the_file_is_synced_before_the_rename_and_the_folder_after_it(server, target, part, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def noted(number):
        steps.append((os.fstat(number).st_ino, os.fstat(number).st_size))
        fsync(number)

    monkeypatch.setattr(partial_file.os, "fsync", noted)
    monkeypatch.setattr(partial_file.os, "replace", lambda a, b: (steps.append(Path(a).name), replace(a, b)))
    get(server, target, "/good")
    whole, folder = (target.stat().st_ino, SIZE), target.parent.stat().st_ino
    renamed = steps.index("file.part")
    assert steps[renamed - 1] == whole and [ino for ino, _ in steps[renamed + 1 :]] == [folder]


def test_what_a_power_cut_can_damage_is_bounded(server, target, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(number):
        synced.append(os.fstat(number).st_size)
        fsync(number)

    monkeypatch.setattr(partial_file, "SYNC", 300_000)
    monkeypatch.setattr(partial_file.os, "fsync", noted)
    get(server, target, "/good")
    sizes = [0, *(size for size in synced if size >= READ), SIZE]
    assert max(b - a for a, b in itertools.pairwise(sizes)) < 300_000 + READ
    assert download.MAX_CUT > 2 * partial_file.SYNC


def test_progress_has_a_rate_and_the_time_left(server, target, part, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(partial_file, "LOG_EVERY", 0)
    part.write_bytes(BODY[:GOOD])
    get(server, target, "/good")
    assert re.search(r"file: \d\d\.\d % of 1\.50MB, \S+B/s, \d\d:\d\d left", caplog.text)
    assert re.search(r"reading file\.part again: \d+\.\d % of 700kB, ", caplog.text)
    caplog.clear()
    verify(target, SIZE, MD5)
    assert re.search(r"verifying file: \d+\.\d % of 1\.50MB, \S+B/s, \d\d:\d\d left", caplog.text)


def start(server, target, root, path="/slow", before=""):
    """A download in a separate process, as in a script of the workflow."""
    code = f"{before}\nfrom samsvae.study.script import session\nwith session({str(target) + '.log'!r}):\n"
    call = f"fetch({server.url + path!r}, {str(target)!r}, {SIZE}, {MD5!r})"
    code += f"    from samsvae.screens.download import fetch\n    {call}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(root / "src")},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def reach(process, part, size):
    """Wait until the part has this size."""
    while process.poll() is None and not (part.exists() and part.stat().st_size >= size):
        time.sleep(0.001)
    assert process.poll() is None, process.stderr.read()


def test_a_download_killed_at_any_byte_resumes(server, target, part, root):
    chance, had = random.Random(0), [0]
    for kill in range(5):
        process = start(server, target, root)
        reach(process, part, had[-1] + chance.randrange(1, 200_000 + 50_000 * kill))
        time.sleep(chance.random() / 50)
        process.kill()
        process.communicate(timeout=30)
        had.append(part.stat().st_size)
        assert part.read_bytes() == BODY[: had[-1]] and not target.exists()
    process = start(server, target, root)
    assert process.communicate(timeout=60) == (None, "") and process.returncode == 0
    assert target.read_bytes() == BODY
    assert sorted(os.listdir(target.parent)) == ["file", "file.log"]
    assert [asked or 0 for asked in starts(server, "/slow")] == [max(size - OVERLAP, 0) for size in had]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_download_leaves_a_part_and_no_traceback(server, target, part, root, number):
    process = start(server, target, root)
    reach(process, part, 200_000)
    process.send_signal(number)
    screen = process.communicate(timeout=30)[1]
    assert process.returncode not in (0, None) and not target.exists()
    assert "Traceback" not in screen + Path(f"{target}.log").read_text()
    if number == signal.SIGINT:
        assert (
            screen == f"DownloadError: {target}: interrupted. The next call resumes from the bytes received so far.\n"
        )
    had = part.stat().st_size
    assert get(server, target, "/good").read_bytes() == BODY
    assert starts(server, "/good") == [had - OVERLAP]


def test_a_full_disk_is_reported_at_once_and_the_part_stays(server, target, part, root):
    """A limit on the file size stands in for it: the write fails in the middle of a block."""
    limit = 333_333
    before = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    process = start(server, target, root, "/good", before)
    screen = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and len(server.seen) == 1
    assert re.fullmatch(
        rf"DownloadError: {target}: cannot be written \(.*File too large.*\)\. "
        r"The next call resumes from the bytes received so far\.\n",
        screen,
    )
    assert part.read_bytes() == BODY[: part.stat().st_size] and part.stat().st_size > limit - READ
    assert get(server, target, "/good").read_bytes() == BODY


def test_verify(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(DownloadError, match=r"no such file"):
        verify(path, SIZE, MD5)
    path.write_bytes(BODY)
    assert verify(path, SIZE, MD5) == verify(path, SIZE, SHA256) == path
    with pytest.raises(DownloadError, match=r"expected 1,500,001 bytes, found 1,500,000"):
        verify(path, SIZE + 1, MD5)
    with pytest.raises(DownloadError, match=rf"expected md5:{'0' * 32}, found {MD5}"):
        verify(path, SIZE, f"md5:{'0' * 32}")


# ---- files whose checksum nobody publishes -------------------------------------------------------------------------

#: Behaviours whose answer does not say how large the file is.
SIZELESS = (
    "/no-length",
    "/chunked",
    "/chunked-cut",
    "/chunked-too-long",
    "/gzip",
    "/gzip-if-wanted",
    "/moved-endlessly",
)


def trusted(server, target, *paths, size=None, tries=3):
    addresses = [server.url + path for path in paths]
    return fetch(addresses, target, size, "none", tries=tries, pause=0.001, timeout=0.5)


@pytest.mark.parametrize("path", [path for path in RIGHT if path not in (*SIZELESS, "/little-by-little", "/moved")])
def test_without_a_checksum_the_first_download_is_recorded(server, target, path, caplog):
    assert trusted(server, target, path).read_bytes() == BODY
    assert sorted(os.listdir(target.parent)) == ["file", "file.sha256"]
    assert subprocess.run(["sha256sum", "-c", "file.sha256"], cwd=target.parent, capture_output=True).returncode == 0
    assert recorded_checksum(target) == SHA256 and f"From now on it must have {SHA256}" in caplog.text


@pytest.mark.parametrize("path", SIZELESS[:2])
def test_a_size_that_no_address_says_must_be_given(server, target, path):
    with pytest.raises(DownloadError, match=r"no address gives the size of the file: http.* does not say how large"):
        trusted(server, target, path)
    assert not target.exists() and trusted(server, target, path, size=SIZE).read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/missing", "HTTP 404"),
        ("/html", "HTTP 200 OK with an HTML page"),
        ("/down", r"HTTP 500 .*gave up after 3 tries"),
    ],
)
def test_the_next_address_gives_the_size_if_the_first_fails(server, target, path, said):
    with pytest.raises(DownloadError, match=rf"no address gives the size of the file: http\S+{path}: {said}"):
        trusted(server, target, path)
    assert trusted(server, target, path, "/good").read_bytes() == BODY


def test_a_later_download_must_have_the_recorded_checksum(server, target):
    trusted(server, target, "/good")
    seen = len(server.seen)
    assert trusted(server, target, "/wrong").read_bytes() == BODY and len(server.seen) == seen, "nothing to download"
    target.unlink()
    with pytest.raises(DownloadError, match=rf"1,500,000 bytes with {SHA256}, but .* remove {target}\.sha256\.$"):
        trusted(server, target, "/wrong")
    assert not target.exists() and recorded_checksum(target) == SHA256
    assert trusted(server, target, "/wrong", "/good").read_bytes() == BODY


def test_a_damaged_file_is_downloaded_again(server, target):
    trusted(server, target, "/good")
    for damaged in (BODY[:-5], OTHER):
        target.write_bytes(damaged)
        assert trusted(server, target, "/good").read_bytes() == BODY


def test_a_download_that_was_interrupted_resumes_without_a_checksum(server, target, part):
    part.write_bytes(BODY[:GOOD])
    assert trusted(server, target, "/good").read_bytes() == BODY
    assert starts(server, "/good") == [0, GOOD - OVERLAP]
    target.unlink()
    (target.parent / "file.sha256").unlink()
    part.write_bytes(OTHER[:GOOD])
    assert trusted(server, target, "/good").read_bytes() == BODY, "bytes that the server does not confirm are not kept"


def test_pieces_of_two_versions_are_not_joined(server, target):
    """The server replaces the file after a break; without a checksum only its ETag shows it."""
    new = BODY[:GOOD] + OTHER[GOOD:]
    BEHAVIOURS["replaced"] = lambda to: (
        to.serve(BODY, end=GOOD, ETag='"1"') if to.nth < 2 else to.serve(new, ETag='"2"')
    )
    assert trusted(server, target, "/replaced", "/replaced").read_bytes() == new
    assert starts(server, "/replaced")[-1] is None, "the new version is requested from its first byte"


def test_a_wrong_checksum_is_not_taken_for_none(server, target):
    for checksum in ("None", "", "md5", "none:"):
        with pytest.raises(DownloadError, match="is not allowed"):
            get(server, target, "/good", checksum=checksum)
    with pytest.raises(DownloadError, match="'none' is not allowed"):
        verify(target, SIZE, "none")
