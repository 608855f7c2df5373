"""What surrounds every script: one sentence for a mistake of the user's, a traceback for one of ours."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest


def script(body: str, tmp_path, root) -> subprocess.Popen:
    """A script with this body inside a session, started."""
    lines = ["from samsvae.session import session", f"with session({str(tmp_path / 'logs' / 'a.log')!r}):"]
    code = "\n".join([*lines, *(f"    {line}" for line in body.splitlines())])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(root / "src")},
        text=True,
        stderr=subprocess.PIPE,
        # a shell's background job, as CI may be, has SIGINT ignored, and its children too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(body: str, tmp_path, root) -> tuple[int, str, str]:
    """Exit status, what is on the screen, and the log."""
    process = script(body, tmp_path, root)
    screen = process.communicate(timeout=60)[1]
    return process.returncode, screen, (tmp_path / "logs" / "a.log").read_text()


def test_what_is_told_goes_to_the_log(tmp_path, root):
    body = "import logging, warnings\nlogging.getLogger('samsvae.fit').info('step %d', 7)\nwarnings.warn('beware')"
    status, screen, log = finished(body, tmp_path, root)
    assert (status, screen) == (0, "")
    assert "INFO step 7" in log and "beware" in log and "Traceback" not in log


@pytest.mark.parametrize("kind", ["ConfigError", "DataError", "CheckpointError", "NumericalError", "DownloadError"])
def test_a_mistake_of_the_user_s_is_one_sentence(tmp_path, root, kind):
    body = f"from samsvae.errors import {kind}\nraise {kind}('cells.tsv: no column \\'split\\', 100 % wrong.')"
    status, screen, log = finished(body, tmp_path, root)
    assert status == 1
    assert screen == f"{kind}: cells.tsv: no column 'split', 100 % wrong.\n"
    assert log.endswith("ERROR cells.tsv: no column 'split', 100 % wrong.\n") and log.count("\n") == 1


def test_an_error_within_an_error_is_a_sentence_all_the_same(tmp_path, root):
    body = "from samsvae.errors import DataError\ntry:\n    {}['x']\nexcept KeyError:\n    raise DataError('bad.')"
    assert finished(body, tmp_path, root)[:2] == (1, "DataError: bad.\n")


@pytest.mark.parametrize("error", ["KeyError('lost')", "ValueError('odd')", "MemoryError()"])
def test_any_other_error_is_logged_with_its_traceback(tmp_path, root, error):
    body = f"def culprit():\n    raise {error}\nculprit()"
    status, screen, log = finished(body, tmp_path, root)
    assert status == 1
    for text in (screen, log):
        assert "Traceback" in text and "in culprit" in text and error.split("(")[0] in text
    assert "please report" in log


def test_the_log_of_a_second_attempt_is_its_own(tmp_path, root):
    for word in ("first", "second"):
        log = finished(f"import logging\nlogging.info('{word}')", tmp_path, root)[2]
    assert "second" in log and "first" not in log


def test_a_script_that_is_stopped_says_so_in_the_log(tmp_path, root):
    process = script("import logging, time\nlogging.info('at work')\ntime.sleep(60)", tmp_path, root)
    log = tmp_path / "logs" / "a.log"
    for _ in range(200):
        if log.is_file() and "at work" in log.read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in log.read_text()
