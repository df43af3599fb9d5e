"""A small, always equal part of ``benchmarks/fuzz.py``: whatever comes in is taken, or refused in one line."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import REPOSITORY

KINDS = ["manifests", "golden", "images", "archives", "models", "texts", "options"]
SEED, COUNT = 7, 300


@pytest.fixture(scope="module")
def fuzz():
    """The benchmark as a module."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import fuzz

        yield fuzz
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_input_is_taken_or_refused_in_one_line(fuzz, bundle, tmp_path, name):
    kind, share = fuzz.KINDS[name]
    figures = fuzz.tally(name, kind, bundle, tmp_path, seed=SEED, count=COUNT * share // 100)
    assert figures.examples == []
    assert figures.other == 0
    assert figures.tried == figures.accepted + figures.refused > 0


def test_every_kind_is_tried(fuzz):
    assert list(fuzz.KINDS) == KINDS


def test_what_is_neither_is_counted(fuzz, tmp_path):
    """The fuzzer itself: a crash of a child, a traceback, a message of two lines and a thread that dies are found."""
    import contextlib
    import threading

    from fuzzing.tally import tally

    from edgerec.errors import EdgerecError

    class TwoLines(EdgerecError):
        def __str__(self) -> str:
            return "one\ntwo"

    def bug():
        raise KeyError("x")

    def in_a_thread():
        thread = threading.Thread(target=bug)
        thread.start()
        thread.join()

    def two_lines():
        raise TwoLines

    def one_line():
        raise EdgerecError("no")

    outcomes = [bug, in_a_thread, two_lines, one_line, lambda: None]

    @contextlib.contextmanager
    def kind(bundle, work):
        yield lambda rng: outcomes.pop(0)()

    figures = tally("itself", kind, tmp_path, tmp_path, seed=0, count=5)
    assert (figures.tried, figures.accepted, figures.refused, figures.other) == (5, 1, 1, 3)


def test_a_child_that_crashes_is_found(fuzz, bundle, monkeypatch):
    from fuzzing import bundles

    monkeypatch.setattr(bundles, "_CHILD", "import os; print('ready', flush=True); input(); os.abort()")
    with bundles.Child() as child, pytest.raises(bundles.Broken, match="crashes with SIGABRT"):
        child.open(bundle)
    monkeypatch.setattr(bundles, "_CHILD", "print('ready', flush=True); input(); input()")
    monkeypatch.setattr(bundles, "LIMIT_S", 0.5)
    with bundles.Child() as child, pytest.raises(bundles.Broken, match="hangs"):
        child.open(bundle)
