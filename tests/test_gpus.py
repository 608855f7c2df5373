"""Each process gets its own GPU; with a fake nvidia-smi on PATH and one process per holder."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from samsvae.errors import ConfigError
from samsvae.study import gpus as devices

NO_GPUS = "exit 6"
TWO_GPUS = "printf '0, GPU-aa\\n1, GPU-bb\\n'"

# Holds GPUs until its standard input is closed; prints their names and what CUDA would see.
HOLDER = """
import os, sys
from samsvae.study.gpus import hold_gpus
with hold_gpus({arguments}poll=0.02, folder=sys.argv[1]) as gpus:
    print(*gpus, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path, monkeypatch, root):
    """Call with a script for nvidia-smi and with environment variables to set the machine that processes see."""

    def make(nvidia_smi, **variables):
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(root / "src"))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(devices.tempfile, "tempdir", str(tmp_path))
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SLURM_JOB_ID"):
            monkeypatch.setenv(name, "to be restored after the test")
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.fixture
def start(tmp_path):
    """Start a holder. All holders are killed at the end of the test."""
    started = []

    def run(arguments="", **variables):
        command = [sys.executable, "-c", HOLDER.format(arguments=arguments), str(tmp_path / "locks")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env={**os.environ, **variables}, text=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        with process:  # closes its pipes and waits for it
            process.kill()


def held(process):
    """What a holder prints once it holds: its GPUs, then CUDA_VISIBLE_DEVICES."""
    return process.stdout.readline().split()


def wait_until_waiting(process):
    assert "waiting" in process.stderr.readline()


def test_each_process_gets_its_own_gpu(machine, start):
    machine(TWO_GPUS)
    said = [held(start()) for _ in range(2)]
    assert sorted(said) == [["GPU-aa", "GPU-aa"], ["GPU-bb", "GPU-bb"]]


@pytest.mark.parametrize("end", [lambda process: process.stdin.close(), lambda process: process.kill()])
def test_a_gpu_is_free_when_its_holder_ends(machine, start, end):
    machine(TWO_GPUS)
    first, second = start(), start()
    gpu = held(first)[0]
    assert held(second)[0] != gpu
    third = start()
    wait_until_waiting(third)
    end(first)
    assert held(third)[0] == gpu


def test_jobs_per_gpu_fill_idle_gpus_first(machine, start):
    machine(TWO_GPUS)
    gpus = [held(start("jobs_per_gpu=2, "))[0] for _ in range(4)]
    assert sorted(gpus[:2]) == ["GPU-aa", "GPU-bb"]
    assert sorted(gpus) == ["GPU-aa", "GPU-aa", "GPU-bb", "GPU-bb"]
    wait_until_waiting(start("jobs_per_gpu=2, "))


def test_two_gpus_are_taken_together(machine, start):
    """While one of two GPUs is in use, a process that needs both holds neither."""
    machine(TWO_GPUS)
    first = start()
    held(first)
    both = start("count=2, ")
    wait_until_waiting(both)
    second = start()
    assert len(held(second)) == 2
    first.stdin.close()
    second.stdin.close()
    assert held(both) == ["GPU-aa", "GPU-bb", "None"]  # all GPUs are held, so the variable stays unset


def test_a_grant_is_never_widened(machine, start):
    machine(TWO_GPUS, CUDA_VISIBLE_DEVICES="1")
    assert held(start()) == ["1", "1"]
    wait_until_waiting(start())  # although GPU 0 is idle


def test_names_and_indices_of_one_gpu_share_a_lock(machine, start):
    """A process that sees only GPU 1 (by index) and one that may choose never get the same GPU."""
    machine(TWO_GPUS)
    assert held(start(CUDA_VISIBLE_DEVICES="1"))[0] == "1"
    assert held(start())[0] == "GPU-aa"


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        (None, ["GPU-aa", "GPU-bb"]),
        ("0,1", ["0", "1"]),
        (" 1 ", ["1"]),
        ("GPU-bb", ["GPU-bb"]),
        ("1,-1,0", ["1"]),  # CUDA stops at -1
        ("MIG-cc", ["MIG-cc"]),  # a slice that nvidia-smi does not list
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),  # Slurm's value for none
    ],
)
def test_granted(variable, gpus):
    env = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert list(devices.granted(env, {"0": "GPU-aa", "1": "GPU-bb"})) == gpus


UUIDS = {"0": "GPU-aabb-11", "1": "GPU-aacc-22", "2": "GPU-ddee-33"}


@pytest.mark.parametrize(
    ("variable", "locks", "warning"),
    [
        ("GPU-aabb", {"GPU-aabb": "GPU-aabb-11"}, ""),
        ("GPU-AACC-22", {"GPU-AACC-22": "GPU-aacc-22"}, ""),
        ("2,GPU-ddee-33,GPU-d,1,1", {"2": "GPU-ddee-33", "1": "GPU-aacc-22"}, ""),  # the same GPU four ways
        ("GPU-aa", {}, "'GPU-aa' names 2 GPUs (GPU-aabb-11, GPU-aacc-22)"),
        ("1,GPU-aa,0", {"1": "GPU-aacc-22"}, "'GPU-aa' names 2 GPUs"),
        ("0,7,1", {"0": "GPU-aabb-11"}, "'7' names no GPU of this machine"),
        ("GPU-ff,1", {}, "'GPU-ff' names no GPU of this machine"),
        ("GPU-", {}, "'GPU-' names no GPU of this machine"),
        ("../x", {}, "'../x' names no GPU of this machine"),
        ("MIG-GPU-aabb-11/1/0,MIG-cc", {"MIG-GPU-aabb-11/1/0": "MIG-GPU-aabb-11/1/0", "MIG-cc": "MIG-cc"}, ""),
    ],
)
def test_names_stand_for_complete_uuids(caplog, variable, locks, warning):
    assert devices.granted({"CUDA_VISIBLE_DEVICES": variable}, UUIDS) == locks
    assert [warning in record.getMessage() for record in caplog.records] == [True] * bool(warning)


def test_cuda_does_not_see_a_gpu_twice(machine):
    machine(TWO_GPUS, CUDA_VISIBLE_DEVICES="1,GPU-bb,7")
    with devices.hold_gpus() as gpus:
        assert gpus == ["1"] and os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_names_stand_for_themselves_without_nvidia_smi():
    assert devices.granted({"CUDA_VISIBLE_DEVICES": "0,GPU-aa"}, {}) == {"0": "0", "GPU-aa": "GPU-aa"}


def test_an_abbreviated_uuid_is_the_same_gpu_in_another_process(machine, start):
    machine("printf '0, GPU-aabb-11\\n1, GPU-ddee-22\\n'")
    assert held(start(CUDA_VISIBLE_DEVICES="GPU-aa"))[0] == "GPU-aa"
    wait_until_waiting(start(CUDA_VISIBLE_DEVICES="GPU-aabb-11"))
    wait_until_waiting(start(CUDA_VISIBLE_DEVICES="0"))
    assert held(start())[0] == "GPU-ddee-22"


def test_slices_of_a_gpu_have_locks_of_their_own(machine, start, tmp_path):
    """The older names of slices contain slashes, which a file name cannot; a name cannot leave the folder either."""
    machine("printf '0, GPU-aa\\n'")
    slices = "MIG-GPU-aa/1/0,MIG-GPU-aa/2/0"
    assert sorted(held(start(CUDA_VISIBLE_DEVICES=slices))[0] for _ in range(2)) == slices.split(",")
    wait_until_waiting(start(CUDA_VISIBLE_DEVICES=slices))
    assert held(start(CUDA_VISIBLE_DEVICES="MIG-/../../x"))[0] == "MIG-/../../x"
    assert sorted(path.name for path in (tmp_path / "locks").iterdir())[:2] == [
        "MIG-%2F..%2F..%2Fx.0", "MIG-GPU-aa%2F1%2F0.0",
    ]  # fmt: skip


# ---- a folder in the shared temporary folder, whose name anyone can guess ----------------------------------------


def folder_of_locks(tmp_path):
    return tmp_path / f"samsvae-gpus-{os.getuid()}-local"


def refused(match):
    with pytest.raises(ConfigError, match=match), devices.hold_gpus():
        pass


def test_the_default_folder_is_for_this_user_alone(machine, tmp_path, monkeypatch):
    """Not in XDG_RUNTIME_DIR, which a job of a cluster may lack while a login shell has it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    machine(TWO_GPUS)
    with devices.hold_gpus():
        assert stat.S_IMODE(folder_of_locks(tmp_path).stat().st_mode) == 0o700
        assert [stat.S_IMODE(path.stat().st_mode) for path in folder_of_locks(tmp_path).iterdir()] == [0o600] * 2
    with devices.hold_gpus() as gpus:  # its own folder is there already
        assert gpus


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o755])
def test_a_folder_that_others_can_use_is_refused(machine, tmp_path, mode):
    machine(TWO_GPUS)
    folder_of_locks(tmp_path).mkdir()
    folder_of_locks(tmp_path).chmod(mode)
    refused(rf"{folder_of_locks(tmp_path)}: the folder of GPU locks is not .* mode {mode:o}, not 700\). Delete it, or")
    assert list(folder_of_locks(tmp_path).iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_the_folder_of_another_user_is_refused(machine, tmp_path):
    machine(TWO_GPUS)
    folder_of_locks(tmp_path).mkdir(mode=0o700)
    os.chown(folder_of_locks(tmp_path), 65534, 65534)
    refused("it belongs to user 65534")


@pytest.mark.parametrize("planted", ["link", "dangling link", "file", "FIFO"])
def test_something_else_in_place_of_the_folder_is_refused(machine, tmp_path, planted):
    machine(TWO_GPUS)
    path, target = folder_of_locks(tmp_path), tmp_path / "victim"
    if planted == "link":
        target.mkdir(mode=0o700)
    plant = {"file": path.touch, "FIFO": lambda: os.mkfifo(path)}.get(planted, lambda: path.symlink_to(target))
    plant()
    refused(f"{path}: the folder of GPU locks is not a folder that you alone can use")
    assert not target.exists() or list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["choosing", "GPU-aa.0"])
@pytest.mark.parametrize("planted", ["link", "dangling link", "FIFO", "folder"])
def test_a_planted_lock_file_is_refused(machine, tmp_path, name, planted):
    """Nothing is written through a link, and a FIFO does not make the training wait."""
    machine(TWO_GPUS)
    folder_of_locks(tmp_path).mkdir(mode=0o700)
    path, victim = folder_of_locks(tmp_path) / name, tmp_path / "victim"
    if planted == "link":
        victim.write_text("precious")
    plant = {"FIFO": lambda: os.mkfifo(path), "folder": path.mkdir}.get(planted, lambda: path.symlink_to(victim))
    plant()
    signal.alarm(20)  # instead of waiting for ever
    try:
        refused(f"^{path}: not a regular file, so it cannot be a lock. Delete it")
    finally:
        signal.alarm(0)
    assert victim.read_text() == "precious" if planted == "link" else not victim.exists()


def test_a_lock_file_is_not_emptied(machine, tmp_path):
    machine(TWO_GPUS)
    folder_of_locks(tmp_path).mkdir(mode=0o700)
    for name in ("choosing", "GPU-aa.0"):
        (folder_of_locks(tmp_path) / name).write_text("precious")
    with devices.hold_gpus() as gpus:
        assert gpus == ["GPU-aa"]
    assert (folder_of_locks(tmp_path) / "choosing").read_text() == "precious"
    assert (folder_of_locks(tmp_path) / "GPU-aa.0").read_text() == "precious"


def test_an_attack_ends_a_training_with_one_sentence(machine, tmp_path, start):
    machine(TWO_GPUS)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks").chmod(0o777)
    attacked = start()
    assert attacked.wait(20) == 1 and "ConfigError" in attacked.stderr.read().splitlines()[-1]


@pytest.mark.parametrize("nvidia_smi", [NO_GPUS, "echo No devices were found", "true"])
def test_no_gpu(machine, caplog, nvidia_smi):
    machine(nvidia_smi)
    with devices.hold_gpus() as gpus:
        assert gpus == []
    with devices.hold_device("auto") as device:
        assert device == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "device 'auto': no GPU is visible, so this runs on the CPU"
    ]
    with pytest.raises(ConfigError, match="'cuda', but no GPU is visible"), devices.hold_device("cuda"):
        pass


def test_no_nvidia_smi(machine, monkeypatch, tmp_path):
    machine(NO_GPUS)
    monkeypatch.setenv("PATH", str(tmp_path))
    with devices.hold_gpus() as gpus:
        assert gpus == []


def test_hidden_gpus_are_not_used(machine):
    machine(TWO_GPUS, CUDA_VISIBLE_DEVICES="")
    with devices.hold_device("auto") as device:
        assert device == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_hold_device_with_a_gpu(machine, monkeypatch):
    """torch is imported only after a GPU was chosen."""
    machine(TWO_GPUS)
    seen = []
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]) is None)
    with devices.hold_device("auto") as device:
        assert device == "cuda"
    assert seen == ["GPU-aa"]


def test_torch_without_cuda_releases_its_gpu(machine, monkeypatch, caplog):
    machine(TWO_GPUS, CUDA_VISIBLE_DEVICES="0")
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: False)
    with devices.hold_device("auto") as device:
        assert device == "cpu"
        with devices.hold_gpus() as gpus:  # would wait forever if the GPU were still held
            assert gpus == ["0"]
    assert "torch cannot use GPU 0" in caplog.text
    with pytest.raises(ConfigError, match="'cuda', but torch cannot use GPU 0"), devices.hold_device("cuda"):
        pass


def test_cpu_never_looks_for_gpus(machine, monkeypatch):
    machine(TWO_GPUS)
    monkeypatch.setattr(devices, "hold_gpus", None)
    with devices.hold_device("cpu") as device:
        assert device == "cpu"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: devices.hold_device("gpu"), "'gpu' is not a device.*Allowed: auto, cpu, cuda"),
        (lambda: devices.hold_gpus(3), "3 GPUs are requested, but this process may use 2"),
        (lambda: devices.hold_gpus(jobs_per_gpu=0), "at least 1, not 1 and 0"),
        (lambda: devices.hold_gpus(count=0), "at least 1, not 0 and 1"),
    ],
)
def test_wrong_arguments(machine, call, message):
    machine(TWO_GPUS)
    with pytest.raises(ConfigError, match=message), call():
        pass


def test_the_notice_counts_the_gpus(machine):
    machine(TWO_GPUS)
    assert "--resources gpu=2" in devices.notice("auto")
    assert "device: cpu" in devices.notice("cpu")
    machine(TWO_GPUS, CUDA_VISIBLE_DEVICES="1")
    assert "--resources gpu=1" in devices.notice("auto")
    machine(NO_GPUS)
    assert devices.notice("auto").startswith("No GPU")
