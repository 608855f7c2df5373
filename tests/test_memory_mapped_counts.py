"""Memory-mapped counts: the same bytes as in memory, and damage is detected in the same way."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_files import outputs, settings, write_files
from small_model import model, screen

from samsvae.data import arrays, cells
from samsvae.data.arrays import read_screen
from samsvae.data.cells import FileRows, cells_of, encode
from samsvae.errors import DataError
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.study.train_run import fit


@pytest.fixture
def mapped(monkeypatch):
    """Treats the small screen like a large one."""
    arrays._read_screen.cache_clear()
    monkeypatch.setattr(arrays, "MAPPED", 0)
    monkeypatch.setattr(cells, "READ_LATE", -1)
    yield
    arrays._read_screen.cache_clear()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_the_map_equals_the_written_arrays(tmp_path, mapped, dtype):
    made = screen()
    made = replace(made, counts=(made.counts % 200).astype(dtype))
    found = read_screen(write_files(tmp_path, made)[0])
    assert isinstance(found.counts, np.memmap) and found.counts.dtype == dtype and not found.counts.flags.writeable
    for name in vars(made):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))


def test_other_orders_and_compressed_files(tmp_path, mapped):
    made = screen()
    arrays = vars(made) | {"counts": np.asfortranarray(made.counts)}
    np.savez(tmp_path / "fortran.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    fortran, packed = (read_screen(tmp_path / f"{name}.npz").counts for name in ("fortran", "packed"))
    assert isinstance(fortran, np.memmap) and not isinstance(packed, np.memmap)
    for found in (fortran, packed):
        np.testing.assert_array_equal(found, made.counts)


def test_cells_are_read_when_a_batch_needs_them(tmp_path, mapped):
    made = screen()
    found, rows = read_screen(write_files(tmp_path, made)[0]), np.array([5, 3, 90, 17, 44])
    late, now = (cells_of(x, rows, encode(made, "sum")) for x in (found, made))
    assert isinstance(late.counts, FileRows) and len(late) == 5
    for at in (slice(1, 4), torch.tensor([4, 0, 0]), slice(None)):
        assert torch.equal(late.batch(at).x, now.batch(at).x)
        assert torch.equal(late.batch(at).dosage.index, now.batch(at).dosage.index)
    assert [part.tolist() for part in late.counts.split(2)] == [part.tolist() for part in now.counts.split(2)]
    for name in ("sams_vae_corr", "cond_vae"):
        net = model(name)
        net.fit_inputs(late)
        assert torch.equal(iwelbo(net, late, particles=3), iwelbo(net, now, particles=3))
        assert torch.equal(net.posterior_mean(late), net.posterior_mean(now))


@pytest.mark.parametrize("name", ["sams_vae_corr", "vae"])
def test_a_training_gives_the_same_bytes(tmp_path, request, name):
    files = write_files(tmp_path, screen())
    made = []
    for _ in range(2):
        out = outputs(tmp_path / str(len(made)))
        fit(settings(name, steps=9, epochs=None), *files, "cpu", out=out)
        made.append(out["model"].read_bytes())
        request.getfixturevalue("mapped")  # from the second training on
    assert made[0] == made[1] and isinstance(read_screen(files[0]).counts, np.memmap)


def flip(path, at: int = 500) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))


def test_a_file_is_verified_once_for_each_content(tmp_path, mapped, monkeypatch):
    path = write_files(tmp_path, screen())[0]
    read_screen(path)
    assert (tmp_path / ".arrays.npz.verified").read_text().split()[0] == str(path.stat().st_size)
    flip(path)
    for _ in range(2):  # a damaged file never gets a marker
        with pytest.raises(DataError, match=r"arrays\.npz: .*CRC.*counts"):
            read_screen(path)
    flip(path)
    read_screen(path)
    arrays._read_screen.cache_clear()
    monkeypatch.setattr(arrays.zlib, "crc32", lambda *_: pytest.fail("verified again"))
    read_screen(path)


@pytest.mark.parametrize("size", [0, 4, 1000, -40])
def test_a_truncated_file_is_rejected(tmp_path, mapped, size):
    path = write_files(tmp_path, screen())[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"arrays\.npz: .*Needed: counts, library"):
        read_screen(path)


def test_a_read_only_folder(tmp_path, mapped, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    path = write_files(tmp_path, screen())[0]
    monkeypatch.setattr(arrays, "atomic", refuse)
    np.testing.assert_array_equal(read_screen(path).counts, screen().counts)
    assert not (tmp_path / ".arrays.npz.verified").exists()
