"""Tests of the pixel cache: it stays below its limit, and never deletes an entry that a process is using."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from edgerec import EdgerecError, pixel_cache
from edgerec.data import load
from edgerec.recipe import DataSection
from tests.data.test_split import write_images

# Size of an entry without its description: 12 images of 8 × 8 × 3 bytes, and their digests.
ENTRY_BYTES = 12 * (8 * 8 * 3 + 32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folders(tmp_path):
    names = [f"{label}/{number}.png" for label in "ab" for number in range(6)]
    return [write_images(tmp_path / f"data{number}", names, seed=number) for number in range(3)]


def read(folder):
    return load(DataSection(source=str(folder), input_size=8))[0].images


def sources():
    return [os.path.basename(entry.source) for entry in pixel_cache().entries]


def age(cache, seconds):
    """Set the time of the last use of all entries back by some seconds."""
    for path in cache.glob("*.json"):
        used = path.stat().st_mtime - seconds
        os.utime(path, (used, used))
        os.utime(path.with_suffix(".raw"), (used, used))


def test_least_recently_used_entries_are_deleted(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEREC_CACHE_LIMIT", str(ENTRY_BYTES * 5 // 2 + 1000))
    for folder in folders[:2]:
        read(folder)
        age(tmp_path / "cache", 60)
    read(folders[0])  # now the second is the least recently used one
    read(folders[2])
    assert sorted(sources()) == ["data0", "data2"]
    assert pixel_cache().size_bytes <= ENTRY_BYTES * 5 // 2 + 1000


def test_entries_in_use_are_kept(folders, monkeypatch):
    monkeypatch.setenv("EDGEREC_CACHE_LIMIT", "1K")
    in_use = read(folders[0])
    content = in_use.copy()
    read(folders[1])
    assert "data0" in sources()
    assert [entry.in_use for entry in pixel_cache(clear=True).entries] == [True]
    assert np.array_equal(in_use, content)
    del in_use
    assert pixel_cache(clear=True).entries == ()


def test_another_process_does_not_delete_what_this_one_uses(folders):
    images = read(folders[0])[3:5]  # a view alone keeps the entry
    read(folders[1])
    command = [sys.executable, "-m", "edgerec", "cache", "--clear", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    report = json.loads(result.stdout)
    assert [os.path.basename(entry["source"]) for entry in report["removed"]] == ["data1"]
    assert [entry["in_use"] for entry in report["entries"]] == [True]
    assert len(images) == 2


def test_deleted_entries_are_read_again(folders):
    before = read(folders[0]).copy()
    pixel_cache(clear=True)
    assert np.array_equal(read(folders[0]), before)


def test_only_entries_of_the_cache_are_deleted(folders, tmp_path):
    read(folders[0])
    other_files = [tmp_path / "cache" / name for name in ("threads-1234", "notes.raw", "settings.json")]
    for path in other_files:
        path.write_text("x")
    (tmp_path / "cache" / "userland").mkdir()
    abandoned = tmp_path / "cache" / f".{'0' * 32}.raw.abc.partial"
    abandoned.mkdir()
    (abandoned / "edgerec-lock").touch()
    assert pixel_cache(clear=True).entries == ()
    assert all(path.exists() for path in (*other_files, tmp_path / "cache" / "userland"))
    assert not abandoned.exists()


def test_cache_command_shows_limits_and_clears_the_cache(folders, tmp_path, invoke):
    for folder in folders:
        read(folder)
        age(tmp_path / "cache", 60)
    shown = invoke("cache")
    assert shown.returncode == 0
    assert str(folders[1]) in shown.stdout
    assert "8×8×3" in shown.stdout
    assert "limit 20.0 GB" in shown.stdout
    smaller = json.loads(invoke("cache", "--limit", "4K", "--json").stdout)
    assert [os.path.basename(entry["source"]) for entry in smaller["removed"]] == ["data0", "data1"]
    assert smaller["size_bytes"] == sum(entry["size_bytes"] for entry in smaller["entries"]) <= 4000
    assert invoke("cache", "--limit", "much").returncode == 2
    assert "deleted  1 entries" in invoke("cache", "--clear").stdout


@pytest.mark.parametrize(("text", "size"), [("5000", 5000), ("1.5G", 1_500_000_000), ("20 MB", 20_000_000)])
def test_cache_limit_is_parsed_as_a_size(monkeypatch, text, size):
    monkeypatch.setenv("EDGEREC_CACHE_LIMIT", text)
    assert pixel_cache().limit_bytes == size


def test_invalid_cache_limit_is_refused(monkeypatch):
    monkeypatch.setenv("EDGEREC_CACHE_LIMIT", "lots")
    with pytest.raises(EdgerecError, match="EDGEREC_CACHE_LIMIT: 'lots' is not a valid size"):
        pixel_cache()
    monkeypatch.setenv("EDGEREC_CACHE_LIMIT", "none")
    assert pixel_cache().limit_bytes is None
