"""Tests of calling a function for many items in threads."""

from __future__ import annotations

from edgerec.utils.parallel import map_in_threads
from edgerec.utils.progress import Progress, track


def test_results_have_the_order_of_the_items():
    assert list(map_in_threads(lambda number: number**2, range(100), chunk=7)) == [n**2 for n in range(100)]


def test_at_most_one_chunk_is_processed_before_its_results_are_used():
    processed = []
    results = map_in_threads(processed.append, range(100), chunk=10)
    next(results)
    assert len(processed) <= 10
    results.close()


def test_track_reports_after_each_item_and_at_the_end():
    reports = []
    assert list(track("abc", "reading", 3, reports.append)) == ["a", "b", "c"]
    assert reports == [Progress("reading", result, 3) for result in (1, 2, 3)]
    reports.clear()
    list(track(range(1000), "reading", 1000, reports.append))
    assert len(reports) == 200
    assert reports[-1].done == 1000
