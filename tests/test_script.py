"""What surrounds every script: one sentence for a user error, a signal or a full disk; a traceback for a bug."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from samsvae.signals import STOP, stop_signals
from samsvae.study.script import CALL, call_of, retry_command


def script(body: str, tmp_path, root, interrupt=signal.SIG_DFL) -> subprocess.Popen:
    """Start a script with this body inside a session."""
    lines = ["from samsvae.study.script import session", f"with session({str(tmp_path / 'logs' / 'a.log')!r}):"]
    code = "\n".join([*lines, *(f"    {line}" for line in body.splitlines())])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(root / "src")},
        text=True,
        stderr=subprocess.PIPE,
        # a background job of a shell (as CI may be) ignores SIGINT, a job under nohup SIGHUP, and so do their children
        preexec_fn=lambda: (signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGHUP, signal.SIG_DFL)),
    )


def finished(body: str, tmp_path, root) -> tuple[int, str, str]:
    """Exit status, stderr and the log."""
    process = script(body, tmp_path, root)
    screen = process.communicate(timeout=60)[1]
    return process.returncode, screen, (tmp_path / "logs" / "a.log").read_text()


def test_messages_and_warnings_go_to_the_log(tmp_path, root):
    body = "import logging, warnings\nlogging.getLogger('samsvae.train').info('step %d', 7)\nwarnings.warn('beware')"
    status, screen, log = finished(body, tmp_path, root)
    assert (status, screen) == (0, "")
    assert "INFO step 7" in log and "beware" in log and "Traceback" not in log


def test_fonts_are_not_in_the_log(tmp_path, root):
    body = "import logging\nlog = logging.getLogger('fontTools.subset')\nlog.info('info')\nlog.warning('warning')"
    log = finished(body, tmp_path, root)[2]
    assert "WARNING warning" in log and "info" not in log


@pytest.mark.parametrize("kind", ["ConfigError", "DataError", "CheckpointError", "NumericalError", "DownloadError"])
def test_a_user_error_is_one_sentence(tmp_path, root, kind):
    body = f"from samsvae.errors import {kind}\nraise {kind}('cells.tsv: no column \\'split\\', 100 % wrong.')"
    status, screen, log = finished(body, tmp_path, root)
    assert status == 1
    assert screen == f"{kind}: cells.tsv: no column 'split', 100 % wrong.\n"
    assert log.endswith("ERROR cells.tsv: no column 'split', 100 % wrong.\n") and log.count("\n") == 1


def test_notes_of_an_error_follow_it(tmp_path, root):
    """A job adds notes, such as the retry command, to any error."""
    for raised, said in (("DataError('bad.')", "DataError: bad.\nTry x.\n"), ("KeyError('lost')", "Traceback")):
        body = f"from samsvae.errors import DataError\nerror = {raised}\nerror.add_note('Try x.')\nraise error"
        _, screen, log = finished(body, tmp_path, root)
        assert screen.startswith(said) and screen.endswith("Try x.\n") and "Try x." in log


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "snakemake --cores 1"),
        ("--cores 8 all report", "snakemake --cores 8"),
        ("-c8 -F --sdm conda --configfile a.yaml b.yaml -- all",
         "snakemake --cores 8 --configfile a.yaml b.yaml --sdm conda"),
        ("-n --workflow-profile profiles/slurm --config runs_per_job=3 title=x -R train -- a -j 2",
         "snakemake --workflow-profile profiles/slurm --config runs_per_job=3 title=x"),
        ("--resources gpu=2 --directory 'my folder' --jobs 4 --keep-going",
         "snakemake --directory 'my folder' --jobs 4 --resources gpu=2"),
    ],
)  # fmt: skip
def test_the_call_without_its_targets(given, said):
    assert call_of(shlex.split(given)) == said


def test_the_retry_command_has_the_settings_of_the_call(monkeypatch):
    monkeypatch.delenv(CALL, raising=False)
    assert retry_command("results/a/scores.tsv") == "snakemake --cores 1 -- results/a/scores.tsv"
    monkeypatch.setenv(CALL, "snakemake --workflow-profile profiles/slurm")
    assert retry_command("my results/a") == "snakemake --workflow-profile profiles/slurm -- 'my results/a'"


def test_an_error_raised_while_handling_another_is_one_sentence_too(tmp_path, root):
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


def stopped(number: int, body: str, tmp_path, root, **handling) -> tuple[int, str, str]:
    """As `finished`, for a script that gets a signal once its log has the line 'at work'."""
    process = script(body, tmp_path, root, **handling)
    log = tmp_path / "logs" / "a.log"
    for _ in range(400):
        if log.is_file() and "at work" in log.read_text():
            break
        time.sleep(0.05)
    process.send_signal(number)
    screen = process.communicate(timeout=30)[1]
    return process.returncode, screen, log.read_text()


WRITES = """
import logging, time
from samsvae.files import atomic
with atomic({path!r}) as aside:
    aside.write_text("half")
    logging.info("at work")
    time.sleep({seconds})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_script_prints_one_sentence_and_leaves_no_partial_file(tmp_path, root, number):
    (tmp_path / "a.tsv").write_text("old")
    status, screen, log = stopped(number, WRITES.format(path=str(tmp_path / "a.tsv"), seconds=60), tmp_path, root)
    assert (status, screen) == (1, f"Interrupted: stopped by {number.name}; no partial file is left.\n")
    assert log.endswith(f"ERROR stopped by {number.name}; no partial file is left.\n") and "Traceback" not in log
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tsv", "logs"]
    assert (tmp_path / "a.tsv").read_text() == "old"


def test_an_error_that_a_library_raises_for_a_signal_is_no_bug(tmp_path, root):
    body = "import logging, time\ntry:\n    logging.info('at work')\n    time.sleep(60)\n"
    body += "except BaseException:\n    raise ImportError('half a module')"
    _, screen, log = stopped(signal.SIGTERM, body, tmp_path, root)
    assert screen.startswith("Interrupted: stopped by SIGTERM") and "please report" not in log


def test_a_signal_that_is_ignored_stays_so(tmp_path, root):
    """As under nohup, or for a background job of a shell."""
    body = WRITES.format(path=str(tmp_path / "a.tsv"), seconds=1)
    status, screen, log = stopped(signal.SIGINT, body, tmp_path, root, interrupt=signal.SIG_IGN)
    assert (status, screen) == (0, "") and "ERROR" not in log and (tmp_path / "a.tsv").read_text() == "half"


@pytest.mark.parametrize(
    ("number", "said"), [("ENOSPC", "the disk is full"), ("EDQUOT", "the quota on its disk is used up")]
)
@pytest.mark.parametrize("file", ["screen.h5ad", None])
def test_a_full_disk_is_one_sentence(tmp_path, root, number, said, file):
    body = f"import errno\nraise OSError(errno.{number}, 'whatever', {file!r})"
    status, screen, log = finished(body, tmp_path, root)
    assert (status, screen) == (
        1,
        f"OSError: {file or 'a file'}: {said}; no partial file is left. Free some space and rerun.\n",
    )
    assert said in log and "Traceback" not in log


def test_handlers_are_restored_and_other_threads_set_none(tmp_path):
    before = [signal.getsignal(number) for number in STOP]
    with stop_signals(interrupt=True):
        assert [signal.getsignal(number) for number in STOP] != before
    assert [signal.getsignal(number) for number in STOP] == before
    found = []

    def enter():
        with stop_signals(interrupt=True) as came:
            found.append(came)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [[]]
