"""Kill a study at random moments, repeatedly, and compare its results byte by byte with those of an undisturbed one.

Run by hand, because it takes long::

    python tests/kill_loop.py --kills 20 --configfile tests/smoke.yaml FOLDER

A killed study is restarted until it is finished. If it finishes before the last kill, another one starts from scratch.
Files with times are not compared: logs, benchmarks, run.json and transfer.json, cost.tsv and the reports. Nor are the
lock and the digests of files, which are compared themselves.
Temporary files that were left behind are reported too. The exit status is 1 if a file differs, is missing or is left
behind.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMES = re.compile(
    r"(?:.*/)?(?:(?:logs|benchmarks|\.digests)/.*|(?:run|transfer)\.json|\.(?:trained|transferred|refit_\w+)/stamp"
    r"|\.lock|cost\.tsv|(?:report|provenance)\.html)"
)
OFTEN = "checkpoint_minutes=0.001"  # saves the state every few steps, so that small trainings are resumed too


def command(config: Path, cores: int, *arguments: str) -> list[str]:
    found = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", str(cores)]
    return [*found, "--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile", str(config), *arguments]


def run(folder: Path, arguments: list[str], *, seconds: float | None = None, number: int = signal.SIGKILL):
    """Exit status and output of a command; the status is None if its process group was signalled."""
    with open(folder / "screen.txt", "w+") as screen:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            stdout=screen,
            stderr=screen,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # in a shell's background job, which this loop may be, SIGINT is ignored, by its children too
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        killed = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            killed = True
            os.killpg(process.pid, number)
            _end(process)
        screen.seek(0)
        return (None if killed else process.returncode), screen.read()


def _end(process: subprocess.Popen, patience: float = 60.0) -> None:
    """Wait for all processes of a group to end; kill them after a minute."""
    until = time.monotonic() + patience
    with suppress(ProcessLookupError):
        while time.monotonic() < until:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def files(folder: Path) -> dict[str, Path]:
    """The results of a study by name, without files that contain times."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in found.items() if not TIMES.fullmatch(name)}


def left(folder: Path) -> list[str]:
    """Temporary files, which have hidden names, that are still there."""
    return sorted(name for name, path in files(folder).items() if path.name.startswith("."))


def differences(undisturbed: Path, killed: Path) -> list[str]:
    """One line for each file that differs, is missing, is unexpected or is left behind."""
    a, b = files(undisturbed), files(killed)
    lines = [f"missing: {name}" for name in sorted(set(a) - set(b))]
    lines += [f"unexpected: {name}" for name in sorted(set(b) - set(a))]
    return lines + [f"differs: {n}" for n in sorted(set(a) & set(b)) if not filecmp.cmp(a[n], b[n], shallow=False)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the studies run (not deleted; 'undisturbed' is reused)")
    parser.add_argument("--configfile", type=Path, default=ROOT / "tests" / "smoke.yaml")
    parser.add_argument("--results", default="results", help="the folder of results that the configuration names")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--between", type=float, nargs=2, default=(5.0, 40.0), metavar="SECONDS")
    parser.add_argument("--signals", nargs="+", default=["KILL"], help="drawn from at random: KILL TERM INT HUP")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times and signals")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    config, rng, folder = options.configfile.resolve(), random.Random(options.seed), options.folder.resolve()
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    study = command(config, options.cores, "--config", OFTEN, "--", "all", "report")
    undisturbed.mkdir(parents=True, exist_ok=True)
    status, output = run(undisturbed, study)
    if status:
        print(output[-4000:])
        return 1
    kills, studies, wrong = 0, 0, []
    while kills < options.kills or studies == 0:
        shutil.rmtree(killed, ignore_errors=True)
        killed.mkdir()
        status, studies = None, studies + 1
        while status is None:
            number = signal.Signals[f"SIG{rng.choice(options.signals)}"]
            seconds = rng.uniform(*options.between) if kills < options.kills else None
            start = time.monotonic()
            status, output = run(killed, study, seconds=seconds, number=number)
            if status is None:
                kills += 1
                count = len(left(killed / options.results))
                print(f"{kills}: {number.name} after {seconds:.1f} s; {count} temporary files left", flush=True)
                if number != signal.SIGKILL and "Traceback" in output:
                    wrong.append(f"{number.name}: a traceback:\n{output[-3000:]}")
            elif status and "--unlock" in output:
                run(killed, command(config, options.cores, "--unlock"))
                status = None
            elif status:
                wrong.append(f"failed after {time.monotonic() - start:.0f} s:\n{output[-4000:]}")
        found = differences(undisturbed / options.results, killed / options.results)
        print(f"study {studies}, finished after {kills} kills in all: {len(found)} differences", flush=True)
        wrong += found
        status, output = run(killed, [*study[:-3], "--dry-run", *study[-3:]])
        if status or "Nothing to be done" not in output:
            wrong.append(f"not finished:\n{output[-2000:]}")
    print("\n".join(wrong) or f"equal: {len(files(undisturbed / options.results))} files")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
