"""Tests of the camera's web page with a running server and, if available, with a browser."""

from __future__ import annotations

import gc
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason='no Starlette (pip install "edgerec[web]")')
pytest.importorskip("uvicorn", reason='no uvicorn (pip install "edgerec[web]")')

from edgerec.camera.frame import Frame, FrameRegion, Result
from edgerec.camera.sinks.sink_thread import SinkWorker
from edgerec.camera.sinks.web import WebSink, label_store, routes
from edgerec.camera.sinks.web import state as page_state
from edgerec.camera.sinks.web.label_store import LabelStore
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.contract.decision import UNKNOWN, Decision, DecisionSpec, decide
from edgerec.errors import EdgerecError, MissingExtraError
from edgerec.http import server
from edgerec.runtime.thermal import processor_temperature_c
from tests.conftest import error_line

LABELS = ("stop", "yield", "no entry")


def result(number, index=0, source="front", gray=None, size=(48, 64)):
    """Return a result for frame ``number``, whose prediction and decision have the index ``index``; -1 is unknown."""
    image = np.full((*size, 3), number % 256 if gray is None else gray, np.uint8)
    scores = np.full(3, 0.1, np.float32)
    scores[index] = 0.8
    now = time.monotonic()
    label = LABELS[index] if index >= 0 else UNKNOWN
    decision = Decision(label, index, 0.8, now, False)
    return Result(
        Frame(image, number, now, source, source), decide(scores, LABELS, DecisionSpec()), now + 0.005, decision
    )


def uncertain_result(number, index=0, source="front"):
    """Return a result with the label unknown, because the score of the best class ``index`` is too low."""
    scores = np.full(3, 0.17, np.float32)
    scores[index] = 0.66
    template = result(number, -1, source)
    return replace(template, classification=decide(scores, LABELS, DecisionSpec(threshold=0.9)))


def state_change(state, source="front", reason=""):
    return StateChange(source, SourceState(state), time.monotonic(), reason)


@pytest.fixture
def web(tmp_path):
    with WebSink("127.0.0.1", 0, LABELS, save_dir=tmp_path / "saved") as sink:
        sink.state(state_change("live"))
        sink.write(result(7))
        yield sink


@pytest.fixture(scope="module")
def shared_web(tmp_path_factory):
    """A sink that is shared by the tests whose requests do not change it."""
    with WebSink("127.0.0.1", 0, LABELS, save_dir=tmp_path_factory.mktemp("standing") / "saved") as sink:
        sink.state(state_change("live"))
        sink.write(result(7))
        yield sink


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


def port_of(sink):
    return urlsplit(sink.url).port


def send_request(sink, path, method="GET", body=None, **headers):
    """Send one request, and return status, headers and body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(sink), timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, dict):
        body = json.dumps(body)
        headers = {"Content-Type": "application/json"} | headers
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return SimpleNamespace(status=response.status, headers=response.headers, body=response.read())
    finally:
        connection.close()


@contextmanager
def stream(sink, **headers):
    """Open a stream of events, and yield a function that returns the kind and the content of the next event."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(sink), timeout=10)
    connection.request("GET", "/events", headers=headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()

    def next_event():
        kind = response.readline().decode().removeprefix("event: ").strip()
        fields = json.loads(response.readline().decode().removeprefix("data: "))
        response.readline()
        return kind, fields

    try:
        yield next_event
    finally:
        response.close()
        connection.close()


def threads():
    return {thread for thread in threading.enumerate() if not thread.name.startswith("pytest")}


# --- content ----------------------------------------------------------------------------------------


def test_page_and_its_files_are_served_without_external_resources(shared_web):
    page = send_request(shared_web, "/")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for name in ("page.css", "page.js", "icon.svg"):
        assert name in page.body.decode()
        assert send_request(shared_web, f"/{name}").status == 200
    everything = b"".join(send_request(shared_web, path).body for path in ("/", "/page.css", "/page.js"))
    # The page uses no external resources, and nothing that the Content-Security-Policy forbids.
    assert b"http://" not in everything
    assert b"https://" not in everything
    assert b"style=" not in page.body
    assert b"<script>" not in page.body


def test_every_response_has_security_headers(shared_web):
    for path in ("/", "/nothing", "/image/0", "/image/9"):
        headers = send_request(shared_web, path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "Server" not in headers


def test_events_contain_results_and_states(web):
    with stream(web) as next_event:
        assert next_event() == ("hello", {"labels": list(LABELS), "saves": True})
        _, events = next_event()
        (source,) = events["sources"]
        assert (source["name"], source["state"], source["frame"]) == ("front", "live", 7)
        assert source["prediction"] == {"label": "stop", "index": 0, "score": 0.8}
        assert source["categories"][0] == ["stop", 0, 0.8]
        assert source["age_ms"] == pytest.approx(5, abs=0.2)
        assert [entry.get("state") or entry["label"] for entry in events["story"]] == ["live", "stop"]
        assert abs(events["story"][1]["at_s"] - time.time()) < 60
        web.write(result(8))
        web.write(result(9, 1))
        web.state(state_change("lost", reason="no picture"))
        entries_received = []
        wait_for(lambda: entries_received.extend(next_event()[1]["story"]) or len(entries_received) >= 2)
        assert [entry.get("state") or entry["label"] for entry in entries_received] == ["yield", "lost"]
        assert entries_received[1]["reason"] == "no picture"


def test_image_is_the_newest_frame(web):
    response = send_request(web, "/image/0")
    assert (response.status, response.headers["X-Frame"]) == (200, "7")
    shown = cv2.imdecode(np.frombuffer(response.body, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (48, 64, 3)
    assert abs(int(shown.mean()) - 7) <= 2
    assert send_request(web, "/image/1").status == 404


def test_image_has_the_right_colors_and_is_scaled_down(web):
    image = np.zeros((1440, 2560, 3), np.uint8)
    image[:, :, 0] = 200  # red
    template = result(8)
    web.write(Result(Frame(image, 8, time.monotonic(), "front", "front"), template.classification, time.monotonic()))
    response = send_request(web, "/image/0?after=7")
    shown = cv2.imdecode(np.frombuffer(response.body, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (720, 1280, 3)
    assert shown[360, 640].tolist() == pytest.approx([0, 0, 200], abs=6)


def test_image_request_waits_for_a_new_frame(web):
    threading.Timer(0.2, lambda: web.write(result(8))).start()
    assert send_request(web, "/image/0?after=7").headers["X-Frame"] == "8"


def test_image_request_without_a_new_frame_returns_204(web, monkeypatch):
    monkeypatch.setattr(routes, "IMAGE_WAIT_S", 0.1)
    assert send_request(web, "/image/0?after=7").status == 204


def test_image_is_encoded_once_and_only_on_request(web):
    for number in range(10, 60):
        web.write(result(number))
    assert web.page_state.encoded == 0
    responses = []
    clients = [threading.Thread(target=lambda: responses.append(send_request(web, "/image/0"))) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert {response.headers["X-Frame"] for response in responses} == {"59"}
    assert web.page_state.encoded == 1


def test_at_most_fifteen_images_per_second_are_encoded(monkeypatch):
    now = [100.0]
    shown = page_state.PageState()
    monkeypatch.setattr("edgerec.camera.sinks.web.state.time.monotonic", lambda: now[0])
    numbers = []
    for number in range(100):  # a second of 100 frames
        shown.write(result(number))
        numbers.append(shown.newest_image(0).result.frame.index)
        now[0] += 0.01
    assert 13 <= shown.encoded <= 16
    assert numbers == sorted(numbers)


def test_cpu_time_for_encoding_is_limited(monkeypatch):
    now = [100.0]
    shown = page_state.PageState()
    monkeypatch.setattr("edgerec.camera.sinks.web.state.time.monotonic", lambda: now[0])

    def slow(_):
        now[0] += 0.1
        return b""

    monkeypatch.setattr(page_state, "jpeg_of", slow)
    while now[0] < 110:
        shown.write(result(int(now[0] * 1000)))
        shown.newest_image(0)
        now[0] += 0.01
    assert shown.encoded * 0.1 == pytest.approx(10 * page_state.MAX_LOAD, rel=0.1)


def region_result(number, region, image):
    """Return the result of a region, which is the upper left quarter of ``image``."""
    height, width = image.shape[:2]
    box = (0, 0, width // 2, height // 2)
    frame = Frame(image[: height // 2, : width // 2], number, time.monotonic(), "front", "front")
    shown = result(number)
    return replace(shown, frame=replace(frame, region=FrameRegion(region, box, image)))


def images_in_memory(buffers):
    """Return how many of the weakly referenced images are still in memory."""
    gc.collect()
    return sum(buffer() is not None for buffer in buffers)


def tracked_image(buffers, size=(400, 600)):
    image = np.zeros((*size, 3), np.uint8)
    buffers.append(weakref.ref(image))
    return image


def test_images_of_many_regions_use_limited_memory(monkeypatch):
    image_bytes = 400 * 600 * 3
    monkeypatch.setattr(page_state, "MAX_IMAGE_BYTES", 10 * image_bytes)
    shown, buffers = page_state.PageState(), []
    for number in range(64):  # Each region was last classified in another frame, and several times before.
        for repetition in range(6):
            image = tracked_image(buffers)
            shown.write(region_result(10 * number + repetition, f"region {number}", image))
            shown.newest_image(number)
            del image
    assert 1 <= images_in_memory(buffers) <= 10
    fields = shown.news(0)["sources"]
    assert {(*source["box"], *source["size"]) for source in fields} == {(0.0, 0.0, 0.5, 0.5, 300, 200)}
    # A region whose image was removed is still displayed, and can be selected again after its next result.
    assert shown.newest_image(0).jpeg
    assert shown.add_pending(0, 0) is None
    shown.write(region_result(1000, "region 0", np.zeros((400, 600, 3), np.uint8)))
    assert shown.add_pending(0, 1000)[1].result.frame.image.shape == (200, 300, 3)


def test_regions_of_a_frame_share_its_memory(monkeypatch):
    monkeypatch.setattr(page_state, "MAX_IMAGE_BYTES", 2 * 400 * 600 * 3)
    shown, image = page_state.PageState(), np.zeros((400, 600, 3), np.uint8)
    for number in range(3):
        shown.write(region_result(7, f"region {number}", image))
    assert all(shown.add_pending(number, 7) for number in range(3))


def test_newest_image_is_kept_even_if_it_exceeds_the_limit(monkeypatch):
    monkeypatch.setattr(page_state, "MAX_IMAGE_BYTES", 1000)
    shown = page_state.PageState()
    for source in ("front", "yard"):
        shown.write(result(1, source=source))
    assert shown.newest_image(0) is None
    assert shown.newest_image(1).jpeg
    assert shown.add_pending(1, 1) is not None


def test_recent_images_of_a_source_that_nobody_views_are_removed(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("edgerec.camera.sinks.web.state.time.monotonic", lambda: now[0])
    shown, buffers = page_state.PageState(), []
    for number in range(6):
        image = tracked_image(buffers)
        shown.write(region_result(number, "door", image))
        shown.newest_image(0)
        now[0] += 1
        del image
    assert images_in_memory(buffers) == page_state.RECENT
    now[0] += page_state.UNVIEWED_S
    shown.write(region_result(6, "door", tracked_image(buffers)))
    assert images_in_memory(buffers) == 1


def test_pending_images_use_limited_memory(monkeypatch):
    shown = page_state.PageState()
    shown.write(result(1))
    monkeypatch.setattr(page_state, "MAX_PENDING_BYTES", 2 * result(1).frame.size_bytes)
    keys = [shown.add_pending(0, 1)[0] for _ in range(4)]
    assert [shown.pending_image(key) is not None for key in keys] == [False, False, True, True]


def test_events_contain_all_sources(web):
    web.state(state_change("connecting", "yard"))
    web.write(result(3, 1, "yard", gray=200))
    assert send_request(web, "/image/1").headers["X-Frame"] == "3"
    with stream(web) as next_event:
        next_event()
        assert [source["name"] for source in next_event()[1]["sources"]] == ["front", "yard"]


def test_result_without_a_decision_is_shown(web):
    template = result(8, 1)
    web.write(Result(template.frame, template.classification, template.completed_s))
    with stream(web) as next_event:
        next_event()
        assert next_event()[1]["sources"][0]["prediction"]["label"] == "yield"


def test_number_of_stored_decisions_is_limited(web):
    for number in range(1000):
        web.write(result(number, number % 2))
    assert len(web.page_state.news(0)["story"]) == page_state.MAX_ENTRIES
    assert len(web.page_state.news(998)["story"]) == 3  # one entry is the state change
    assert web.page_state.news(5000)["story"] == []


def test_decisions_of_one_source_do_not_displace_those_of_others(web):
    web.write(result(1, 2, "yard"))
    for number in range(1000):
        web.write(result(number, number % 2))
    entries_received = web.page_state.news(0)["story"]
    assert [entry["label"] for entry in entries_received if entry["source"] == "yard"] == ["no entry"]
    assert len(entries_received) == page_state.MAX_ENTRIES + 1
    assert [entry["number"] for entry in entries_received] == sorted(entry["number"] for entry in entries_received)


def test_unknown_label_is_sent_with_the_best_class(web):
    def entries():
        events = web.page_state.news(0)
        return events["sources"][0]["prediction"], events["story"][-1]

    web.write(uncertain_result(8, 1))
    for fields in entries():
        assert (fields["label"], fields["index"], fields["best"]) == (UNKNOWN, -1, ["yield", 0.66])
    web.write(result(9, 1))
    assert not any("best" in fields for fields in entries())


def test_last_decision_has_the_current_score(web):
    def scored(number, score, index=0):
        template = result(number, index)
        return replace(template, decision=replace(template.decision, score=score))

    def scores():
        with stream(web) as next_event:
            next_event()
            return [entry["score"] for entry in next_event()[1]["story"] if "label" in entry]

    first = scores()[0]
    web.write(scored(8, 0.5, 1))
    assert scores() == [first, 0.5]
    web.write(scored(9, 0.875, 1))
    assert scores() == [first, 0.875]
    web.state(state_change("live"))  # the decision is unchanged
    web.write(scored(10, 0.75, 1))
    assert scores() == [first, 0.75]
    web.write(scored(11, 0.25, 0))
    web.write(scored(12, 0.375, 0))
    assert scores() == [first, 0.75, 0.375], "the score of a finished decision stays"


@pytest.mark.slow
def test_list_shows_the_current_score(browser):
    from playwright.sync_api import expect

    def scored(score):
        template = result(0)
        return replace(template, decision=replace(template.decision, score=score))

    with WebSink("127.0.0.1", 0, LABELS) as sink:
        sink.state(state_change("live"))
        sink.write(scored(0.6))
        page = browser.new_page()
        page.goto(sink.url)
        shown = page.locator("#story li:not(.state) .score")
        expect(shown).to_have_text(["60 %"])
        sink.write(scored(0.97))
        expect(page.locator("#score")).to_have_text("97 %")
        expect(shown).to_have_text(["97 %"])
        page.close()


# --- saving -----------------------------------------------------------------------------------------


def hold_frame(sink, frame=7):
    response = send_request(sink, "/hold", "POST", {"source": 0, "frame": frame})
    assert response.status == 200, response.body
    return json.loads(response.body)


def test_labeled_image_is_saved_without_loss(web, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    template = result(8)
    web.write(Result(Frame(noise, 8, time.monotonic(), "front", "front"), template.classification, time.monotonic()))
    assert send_request(web, "/image/0?after=7").headers["X-Frame"] == "8"
    pending = hold_frame(web, 8)
    assert (pending["frame"], pending["label"], pending["index"]) == (8, "stop", 0)
    for number in range(9, 30):  # newer frames arrive while the user selects the label
        web.write(result(number))
        send_request(web, "/image/0")
    assert send_request(web, f"/held/{pending['hold']}").headers["X-Frame"] == "8"
    response = send_request(web, "/save", "POST", {"hold": pending["hold"], "index": 2})
    assert response.status == 200
    fields = json.loads(response.body)
    assert (fields["label"], fields["saved"]) == ("no entry", 1)
    (path,) = (tmp_path / "saved").rglob("*.*")
    assert path == tmp_path / "saved" / "no entry" / fields["file"]
    assert np.array_equal(cv2.imread(str(path))[:, :, ::-1], noise)
    assert send_request(web, "/save", "POST", {"hold": pending["hold"], "index": 2}).status == 410


def test_recently_shown_frame_can_be_selected(web):
    send_request(web, "/image/0")
    time.sleep(0.1)
    web.write(result(8))
    assert send_request(web, "/image/0?after=7").headers["X-Frame"] == "8"
    assert hold_frame(web, 7)["frame"] == 7


def test_saved_images_can_be_read_as_a_data_set(web, tmp_path):
    from edgerec.data.readers import find

    for index in (0, 1, 1):
        assert send_request(web, "/save", "POST", {"hold": hold_frame(web)["hold"], "index": index}).status == 200
    source_folder = find(str(tmp_path / "saved"))
    assert source_folder.labels == ("stop", "yield")
    assert source_folder.classes.tolist() == [0, 1, 1]


def test_images_with_hostile_labels_stay_in_the_folder(tmp_path):
    labels = ("..", "../../../x", "/etc/x", "a\0b", ".", "x" * 5000, "é" * 300)
    saved = LabelStore(tmp_path / "saved", labels)
    for index in range(len(labels)):
        path = saved.save(result(1).frame, index).resolve()
        assert path.parent.parent == (tmp_path / "saved").resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_names_of_saved_images_are_unique(tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.camera.sinks.web.label_store.time.time", lambda: 1e9)
    saved = LabelStore(tmp_path, LABELS)
    assert len({saved.save(result(1).frame, 0) for _ in range(5)}) == 5


def test_saving_on_a_full_disk_returns_an_error(web, monkeypatch, tmp_path):
    monkeypatch.setattr(label_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    response = send_request(web, "/save", "POST", {"hold": hold_frame(web)["hold"], "index": 0})
    assert response.status == 507
    assert b"nearly full" in response.body
    assert not list(tmp_path.rglob("*.png"))


def test_saving_to_an_unwritable_folder_raises_an_error(tmp_path):
    saved = LabelStore(tmp_path / "saved", LABELS)
    (tmp_path / "saved" / "stop").write_text("")
    with pytest.raises(EdgerecError, match="cannot write to"):
        saved.save(result(1).frame, 0)


@pytest.mark.parametrize("relative_path", ["file", "file/in it"])
def test_folder_that_cannot_be_created_is_refused_at_the_start(relative_path, tmp_path):
    before = threads()
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgerecError, match="cannot save images in") as error:
        WebSink("127.0.0.1", 0, LABELS, save_dir=tmp_path / relative_path)
    assert "\n" not in str(error.value)
    assert threads() - before == set()


def test_folder_without_write_permission_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(label_store.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(EdgerecError, match="the folder is not writable"):
        LabelStore(tmp_path, LABELS)


def test_command_reports_an_unusable_folder_in_one_line(bundle, tmp_path, edgerec):
    (tmp_path / "file").write_text("")
    result = edgerec(
        "camera", bundle, "-s", "synthetic:64x48@30", "--web", "127.0.0.1:0", "--web-save", tmp_path / "file"
    )
    assert f"cannot save images in {tmp_path / 'file'}" in error_line(result)


def test_saving_without_a_folder_returns_an_error():
    with WebSink("127.0.0.1", 0, LABELS) as web:
        assert send_request(web, "/hold", "POST", {"source": 0, "frame": 0}).status == 404
        web.state(state_change("connecting"))
        assert send_request(web, "/hold", "POST", {"source": 0, "frame": 0}).status == 409
        web.write(result(1))
        response = send_request(web, "/save", "POST", {"hold": hold_frame(web, 1)["hold"], "index": 0})
        assert (response.status, b"--web-save FOLDER" in response.body) == (409, True)


def test_snapshot_is_the_frame_in_full_resolution_without_loss(web, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    template = result(8)
    web.write(replace(template, frame=replace(template.frame, grabbed=noise)))
    pending = hold_frame(web, 8)
    web.write(result(9))
    for _ in range(2):  # some browsers send the request twice
        response = send_request(web, f"/held/{pending['hold']}/file")
        assert (response.status, response.headers["Content-Type"]) == (200, "image/png")
        assert response.headers["Content-Disposition"] == f'attachment; filename="{pending["file"]}"'
        shown = cv2.imdecode(np.frombuffer(response.body, np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(shown[:, :, ::-1], noise)
    assert list((tmp_path / "saved").iterdir()) == []
    # An image that has no label yet can still be saved.
    assert send_request(web, "/save", "POST", {"hold": pending["hold"], "index": 0}).status == 200
    assert send_request(web, f"/held/{pending['hold']}/file").status == 410


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("front", "front"),
        ("../../etc/passwd", "etc-passwd"),
        ("rtsp://user@camera.example/live?x=1", "rtsp-camera-example-live"),
        ('a"; filename="b.exe\r\nX: y', "a-filename-b-exe-X-y"),
        ("\0/é/…", "e"),
        ("x" * 500, "x" * 55 + "-c38c2bf3"),
    ],
)
def test_name_of_a_snapshot_has_source_and_time(source, name):
    with WebSink("127.0.0.1", 0, LABELS) as web:
        web.write(result(1, source=source))
        before = time.strftime("%Y%m%d")
        fields = hold_frame(web, 1)
        sent = send_request(web, f"/held/{fields['hold']}/file").headers["Content-Disposition"]
        assert sent == f'attachment; filename="{fields["file"]}"'
        assert re.fullmatch(re.escape(name) + r"-\d{8}-\d{6}-\d{3}\.png", fields["file"])
        assert fields["file"].removeprefix(name)[1:9] in (before, time.strftime("%Y%m%d"))


def test_downloaded_image_is_removed_before_images_without_a_label():
    shown = page_state.PageState()
    shown.write(result(1))
    waits, taken = shown.add_pending(0, 1)[0], shown.add_pending(0, 1)[0]
    shown.evict_first(taken)
    for _ in range(page_state.MAX_PENDING - 1):
        shown.add_pending(0, 1)
    assert shown.pending_image(taken) is None
    assert shown.pending_image(waits) is not None
    shown.evict_first("a key that was never given")


def test_pending_images_are_limited_in_number_and_time(monkeypatch):
    shown = page_state.PageState()
    shown.write(result(1))
    keys = [shown.add_pending(0, 1)[0] for _ in range(page_state.MAX_PENDING + 3)]
    assert [shown.pending_image(key) is not None for key in keys] == [False] * 3 + [True] * page_state.MAX_PENDING
    expiry = time.monotonic() + page_state.PENDING_S + 1
    monkeypatch.setattr("edgerec.camera.sinks.web.state.time.monotonic", lambda: expiry)
    assert shown.pending_image(keys[-1]) is None


@pytest.mark.parametrize("index", [-1, 3, 10**9, 2**64, 1.0, "1", True, None, [1], {"a": 1}, "../../etc"])
def test_invalid_label_index_is_refused(shared_web, index):
    assert (
        send_request(shared_web, "/save", "POST", {"hold": hold_frame(shared_web)["hold"], "index": index}).status
        == 400
    )
    with stream(shared_web) as next_event:
        assert next_event()[0] == "hello"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"null", b"\xff\xfe", b"[" * 1000, b'{"source": 0}', b'{"source": "0", "frame": 1}'],
)
def test_invalid_request_body_is_refused(shared_web, body):
    assert send_request(shared_web, "/hold", "POST", body, Content_Type="application/json").status == 400
    assert send_request(shared_web, "/save", "POST", body, Content_Type="application/json").status == 400


@pytest.mark.parametrize("hold", [None, 1, "", "x", "../../../etc/passwd", "\0"])
def test_unknown_key_of_a_pending_image_is_refused(shared_web, hold):
    assert send_request(shared_web, "/save", "POST", {"hold": hold, "index": 0}).status in (400, 410)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page/../page_state.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page_state.py",
        "/held/..%2f..%2fetc%2fpasswd",
        "/held/%00",
        "/held/x/file",
        "/held/..%2f..%2fetc%2fpasswd/file",
        "/held/x/../../etc/passwd",
        "/image/-1",
        "/image/1e3",
        "/image/99999999999999999999",
        "/image/0?after=x",
        "//etc/passwd",
        "/static/",
        "/docs",
        "/\\..\\",
    ],
)
def test_other_paths_return_404(shared_web, path):
    response = send_request(shared_web, path)
    assert response.status in (400, 404, 410)
    assert b"root:" not in response.body


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(shared_web, method):
    assert send_request(shared_web, "/", method).status == 405
    assert send_request(shared_web, "/save", method).status == 405
    assert send_request(shared_web, "/save").status == 405


# --- access control ---------------------------------------------------------------------------------

TOKEN = "correct horse battery"


@pytest.fixture
def protected_web():
    with WebSink("127.0.0.1", 0, LABELS, token=TOKEN) as sink:
        sink.write(result(7))
        yield sink


@pytest.mark.parametrize("path", ["/", "/events", "/image/0", "/page.js", "/held/x", "/held/x/file", "/nothing"])
def test_request_without_the_token_is_refused(protected_web, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": "a=b"}):
        response = send_request(protected_web, path, **headers)
        assert response.status == 401
        assert b"stop" not in response.body
    assert send_request(protected_web, "/save", "POST", {"hold": "x", "index": 0}).status == 401


def test_token_in_the_address_sets_a_cookie(protected_web):
    query = urlsplit(protected_web.url).query
    assert parse_qs(query) == {"token": [TOKEN]}
    response = send_request(protected_web, f"/?{query}")
    assert response.status == 200
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert send_request(protected_web, "/image/0", Cookie=cookie.partition(";")[0]).status == 200
    assert send_request(protected_web, "/image/0", Cookie=cookie.partition(";")[0][:-1]).status == 401
    assert send_request(protected_web, "/image/0", Authorization=f"Bearer {TOKEN}").status == 200
    with stream(protected_web, Authorization=f"Bearer {TOKEN}") as next_event:
        assert next_event()[0] == "hello"


@pytest.mark.parametrize("token", ["wrong", "", "%00", "%ff%fe", "é", TOKEN[:-1], TOKEN + "x", "a&token=b"])
def test_wrong_token_is_refused(protected_web, token):
    from urllib.parse import quote

    assert send_request(protected_web, f"/?token={quote(token, safe='%&=')}").status == 401


def test_browser_without_the_token_gets_the_login_page(protected_web):
    response = send_request(protected_web, "/", Accept="text/html,*/*")
    assert response.status == 401
    assert b'name="token"' in response.body
    assert send_request(protected_web, "/page.css").status == 200  # the style sheet of the login page needs no token


def test_tokens_are_compared_in_constant_time(protected_web, monkeypatch):
    compared = []
    real = __import__("secrets").compare_digest
    monkeypatch.setattr("edgerec.http.auth.secrets.compare_digest", lambda a, b: compared.append(b) or real(a, b))
    send_request(protected_web, "/", Authorization="Bearer wrong")
    assert TOKEN.encode() in compared


def test_token_is_generated_for_other_addresses_than_loopback(caplog):
    caplog.set_level("INFO", "edgerec")
    with WebSink("0.0.0.0", 0, LABELS) as first, WebSink("0.0.0.0", 0, LABELS) as second:
        assert len(first.token) >= 32
        assert first.token != second.token
        assert first.address in caplog.text
        assert first.token not in caplog.text
        assert "0.0.0.0" not in first.url
        assert send_request(first, "/").status == 401
        assert send_request(first, "/", Host="camera.example").status == 401
        assert send_request(first, f"/?token={first.token}", Host="camera.example").status == 200
        assert send_request(second, f"/?token={first.token}").status == 401


def test_short_token_is_refused():
    with pytest.raises(EdgerecError, match="at least 8"):
        WebSink("127.0.0.1", 0, LABELS, token="1234")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "localhost.x"])
def test_foreign_host_names_are_refused(shared_web, host):
    for path in ("/", "/events", "/image/0"):
        assert send_request(shared_web, path, Host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "LOCALHOST:8000", "[::1]:8000"])
def test_own_host_names_are_accepted(shared_web, host):
    assert send_request(shared_web, "/", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_request_of_another_site_cannot_save(web, tmp_path, headers):
    pending = hold_frame(web)["hold"]
    assert send_request(web, "/save", "POST", {"hold": pending, "index": 0}, **headers).status == 403
    assert not list((tmp_path / "saved").iterdir())
    same_origin = {"Origin": f"http://127.0.0.1:{port_of(web)}", "Sec-Fetch-Site": "same-origin"}
    assert send_request(web, "/save", "POST", {"hold": pending, "index": 0}, **same_origin).status == 200


def test_request_of_a_form_cannot_save(shared_web):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert send_request(shared_web, "/save", "POST", b"{}", Content_Type=kind).status == 415


def test_other_sites_may_link_to_the_page_but_not_read_it(shared_web):
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert send_request(shared_web, "/", **elsewhere, **{"Sec-Fetch-Mode": "navigate"}).status == 200
    for path in ("/image/0", "/events", "/page.js"):
        assert send_request(shared_web, path, **elsewhere, **{"Sec-Fetch-Mode": "no-cors"}).status == 403


# --- limits -----------------------------------------------------------------------------------------


def send_raw(sink, sent, seconds=10):
    """Send bytes, and return all bytes that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port_of(sink)), timeout=seconds) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionError:
            pass
    return received


def test_truncated_request_body_is_not_logged_as_an_error(shared_web, caplog):
    start = f"POST /save HTTP/1.1\r\nHost: 127.0.0.1:{port_of(shared_web)}\r\nContent-Type: application/json\r\n"
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", port_of(shared_web)), timeout=10) as connection:
            connection.sendall(f"{start}Content-Length: 100\r\n\r\n{{".encode())
    assert send_request(shared_web, "/").status == 200
    assert caplog.messages == []


def test_mutated_requests_do_not_crash_the_page(shared_web, capfd):
    rng = np.random.default_rng(4)
    host = f"Host: 127.0.0.1:{port_of(shared_web)}\r\n"
    save = json.dumps({"hold": "x", "index": 0})
    length = f"Content-Length: {len(save)}"
    right = [
        f"GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n",
        f"GET /image/0?after=3 HTTP/1.1\r\n{host}Cookie: a=b; c\r\nConnection: close\r\n\r\n",
        f"POST /save HTTP/1.1\r\n{host}Connection: close\r\nContent-Type: application/json\r\n{length}\r\n\r\n{save}",
    ]
    for number in range(300):
        sent = bytearray(right[number % 3].encode())
        for _ in range(rng.integers(1, 6)):
            position = int(rng.integers(len(sent)))
            piece = rng.integers(0, 256, rng.integers(0, 4), np.uint8).tobytes()
            sent[position : position + int(rng.integers(0, 4))] = piece
        received = send_raw(shared_web, bytes(sent))
        assert not received or received.startswith(b"HTTP/1.1 ")
        assert b"Traceback" not in received
        assert not received.startswith(b"HTTP/1.1 500")
    assert send_request(shared_web, "/").status == 200
    assert capfd.readouterr() == ("", "")


def post_head(sink, *lines):
    host = f"127.0.0.1:{port_of(sink)}"
    return "\r\n".join(
        ["POST /save HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *lines, "", ""]
    ).encode()


def test_too_large_request_bodies_are_refused(web):
    assert b" 413 " in send_raw(web, post_head(web, "Content-Length: 1000000000"))
    assert b" 413 " in send_raw(web, post_head(web, "Content-Length: 5000") + b"x" * 5000)
    chunked = post_head(web, "Transfer-Encoding: chunked") + b"400\r\n" + b"x" * 0x400 + b"\r\n10\r\n" + b"x" * 16
    assert b" 413 " in send_raw(web, chunked + b"\r\n0\r\n\r\n")
    assert send_request(web, "/").status == 200


def test_incomplete_request_body_times_out(web, monkeypatch):
    monkeypatch.setattr(routes, "BODY_S", 0.2)
    with socket.create_connection(("127.0.0.1", port_of(web)), timeout=10) as connection:
        connection.sendall(post_head(web, "Content-Length: 20") + b"{")
        assert b" 408 " in connection.recv(65536)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\0" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /save HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_invalid_http_requests_are_refused(shared_web, sent, capfd):
    received = send_raw(shared_web, sent)
    assert received == b"" or b" 4" in received.splitlines()[0]
    assert send_request(shared_web, "/").status == 200
    assert capfd.readouterr() == ("", "")


def test_invalid_http_during_a_response_closes_the_connection(shared_web):
    head = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port_of(shared_web)}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port_of(shared_web)), timeout=10) as connection:
        connection.sendall(head.encode())
        received = b""
        while b"event: hello" not in received:
            received += connection.recv(65536)
        connection.sendall(b"not a chunk\r\n")
        while chunk := connection.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1") == 1


def test_number_of_event_streams_is_limited(web):
    with ExitStack() as stack:
        streams = [stack.enter_context(stream(web)) for _ in range(routes.MAX_CLIENTS)]
        refused = send_request(web, "/events")
        assert (refused.status, b"close one" in refused.body) == (503, True)
        web.write(result(8, 1))
        for next_event in streams:
            wait_for(lambda next_event=next_event: "yield" in str(next_event()[1]))
        assert send_request(web, "/image/0").status == 200
    # A closed stream makes room for another one.
    wait_for(lambda: is_stream_accepted(web))


def is_stream_accepted(sink):
    """Return whether a new event stream is accepted."""
    try:
        with stream(sink) as next_event:
            return next_event()[0] == "hello"
    except AssertionError:
        return False


def test_silent_connections_do_not_lock_anybody_out(web, monkeypatch):
    monkeypatch.setattr(server, "SLOW_S", 0.3)
    silent = [socket.create_connection(("127.0.0.1", port_of(web)), timeout=10) for _ in range(150)]
    try:
        assert wait_for(lambda: _status(web) == 200)
    finally:
        for connection in silent:
            connection.close()


def _status(sink):
    try:
        return send_request(sink, "/").status
    except (OSError, http.client.HTTPException):
        return None


def test_connection_with_an_incomplete_request_is_closed(web, monkeypatch):
    monkeypatch.setattr(server, "SLOW_S", 0.3)
    with socket.create_connection(("127.0.0.1", port_of(web)), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127")
        with suppress(ConnectionError):
            assert connection.recv(10) == b""


def test_connection_of_a_client_that_does_not_read_is_closed(web, monkeypatch):
    lost, connection_lost = threading.Event(), server.LimitedConnection.connection_lost

    def record_loss(connection, error):
        connection_lost(connection, error)
        lost.set()

    monkeypatch.setattr(server, "SLOW_S", 0.3)
    monkeypatch.setattr(server.LimitedConnection, "connection_lost", record_loss)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1280, 3), np.uint8)
    template = result(8)
    web.write(Result(Frame(noise, 8, time.monotonic(), "front", "front"), template.classification, time.monotonic()))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", port_of(web)))
        request = f"GET /image/0 HTTP/1.1\r\nHost: 127.0.0.1:{port_of(web)}\r\n\r\n".encode()
        connection.sendall(request * 8)
        assert lost.wait(10)


def test_port_in_use_is_reported_with_advice(web):
    port = port_of(web)
    with pytest.raises(EdgerecError) as error:
        WebSink("127.0.0.1", port, LABELS)
    message = str(error.value)
    assert f"port {port} of 127.0.0.1" in message
    assert f"another program uses the port; choose another port, e.g. {port + 1}" in message
    assert "\n" not in message


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host.invalid", "a" * 300])
def test_address_of_another_machine_is_refused(host):
    with pytest.raises(EdgerecError, match="cannot listen") as error:
        WebSink(host, 0, LABELS)
    assert "\n" not in str(error.value)


# --- closing ----------------------------------------------------------------------------------------


def test_closing_ends_the_thread_and_frees_the_port(tmp_path):
    before = threads()
    sink = WebSink("127.0.0.1", 0, LABELS, save_dir=tmp_path)
    sink.write(result(1))
    assert send_request(sink, "/save", "POST", {"hold": hold_frame(sink, 1)["hold"], "index": 0}).status == 200
    port = port_of(sink)
    with stream(sink) as next_event, socket.create_connection(("127.0.0.1", port)):
        next_event()
        waits = threading.Thread(target=lambda: _status_of(sink, "/image/0?after=1"))
        waits.start()
        sink.close()
        waits.join(5)
        assert not waits.is_alive()
        assert threads() - before == set()
    sink.close()
    WebSink("127.0.0.1", port, LABELS).close()


def _status_of(sink, path):
    try:
        return send_request(sink, path).status
    except (OSError, http.client.HTTPException):
        return None


def test_closing_does_not_wait_for_clients_that_do_not_read():
    before = threads()
    sink = WebSink("127.0.0.1", 0, LABELS)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1280, 3), np.uint8)
    template = result(8)
    sink.write(Result(Frame(noise, 8, time.monotonic(), "front", "front"), template.classification, time.monotonic()))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", port_of(sink)))
        request = f"GET /image/0 HTTP/1.1\r\nHost: 127.0.0.1:{port_of(sink)}\r\n\r\n".encode()
        connection.sendall(request * 8)
        wait_for(lambda: sink.page_state.encoded)
        sink.close()
    assert threads() - before == set()


def test_closing_immediately_after_the_start_ends_all_threads():
    before = threads()
    for _ in range(5):
        WebSink("127.0.0.1", 0, LABELS).close()
    assert threads() - before == set()


def test_camera_without_web_does_not_import_starlette():
    code = (
        "import sys, edgerec.camera.sinks.web; "
        "print([name for name in ('starlette', 'uvicorn', 'cv2', 'asyncio') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_missing_package_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgerec\[web\]"'):
        WebSink("127.0.0.1", 0, LABELS)


def test_web_sink_works_in_a_sink_worker():
    sink = WebSink("127.0.0.1", 0, LABELS)
    worker = SinkWorker(sink, lossless=True)
    worker.put(state_change("live"))
    for number in range(200):
        worker.put(result(number))
    wait_for(lambda: worker.written == 200)
    assert send_request(sink, "/image/0").headers["X-Frame"] == "199"
    worker.close()
    assert (worker.dropped, worker.failed, sink.closed) == (0, 0, False)


def test_cpu_temperature_is_read(tmp_path):
    assert processor_temperature_c(tmp_path) is None
    for number, (kind, value) in enumerate([("iwlwifi", "90000"), ("cpu-thermal", "51234"), ("acpitz", "x")]):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(kind + "\n")
        (zone / "temp").write_text(value + "\n")
    assert processor_temperature_c(tmp_path) == pytest.approx(51.234)


# --- in a browser -----------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("no Chromium (apt install chromium)")
    with playwright.sync_playwright() as playwright_api:
        chromium = playwright_api.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_page_works_in_a_browser(browser, tmp_path, monkeypatch):
    from playwright.sync_api import expect

    monkeypatch.setattr(page_state, "processor_temperature_c", lambda: 51.4)
    saved = tmp_path / "saved"
    with WebSink("127.0.0.1", 0, LABELS, token=TOKEN, save_dir=saved) as sink:
        page = browser.new_page()
        complaints = []
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        sink.state(state_change("live"))
        sink.write(result(7, 0, gray=200))
        page.goto(sink.url)
        assert page.url == sink.url.partition("?")[0]  # the token is removed from the address

        expect(page.locator("#image[data-frame='7']")).to_be_visible()
        assert gray_value_of(page) == pytest.approx(200, abs=3)
        expect(page.locator("#label")).to_have_text("stop")
        expect(page.locator("#bars li").first).to_contain_text("stop")
        expect(page.locator("#bars li").first).to_contain_text("80 %")
        expect(page.locator("#story li")).to_have_count(2)
        expect(page.locator(".source .is")).to_have_text("live")
        expect(page.locator("#temperature")).to_have_text("51")
        expect(page.locator("#age")).to_have_text("5")

        with page.expect_download() as download:
            page.click("#snapshot")
        assert re.fullmatch(r"front-\d{8}-\d{6}-\d{3}\.png", download.value.suggested_filename)
        assert (cv2.imread(str(download.value.path())) == 200).all()
        assert list(saved.rglob("*.png")) == []
        page.click("#toast >> text=Also save as “stop”")
        expect(page.locator("#toast")).to_have_text("Saved as “stop” · 1 so far")
        assert [path.parent.name for path in saved.rglob("*.png")] == ["stop"]

        sink.write(result(8, 1, gray=90))
        expect(page.locator("#image[data-frame='8']")).to_be_visible()
        assert gray_value_of(page) == pytest.approx(90, abs=3)
        expect(page.locator("#bars li").first).to_contain_text("yield")
        expect(page.locator("#story li").first).to_contain_text("yield")

        page.click("#wrong")
        expect(page.locator("#chooser")).to_be_visible()
        sink.write(result(9, 1, gray=10))
        expect(page.locator("#image[data-frame='9']")).to_be_visible()
        page.click("#labels >> text=no entry")
        expect(page.locator("#toast")).to_have_text("Saved as “no entry” · 2 so far")
        (corrected,) = (saved / "no entry").iterdir()
        assert cv2.imread(str(corrected)).mean() == 90  # the image that the page showed when the button was clicked

        sink.state(state_change("lost", reason="the cable"))
        expect(page.locator(".source .is")).to_have_text("lost")
        expect(page.locator("#veil-reason")).to_have_text(re.compile(r"the cable · for (<1|\d) s"))
        expect(page.locator("#fps")).to_have_text("–")
        expect(page.locator("#story li").first).to_contain_text("lost")
        assert complaints == []

        # An image of one source is never shown for another source.
        sink.state(state_change("connecting", "yard"))
        page.locator(".source").nth(1).click()
        expect(page.locator("#label")).to_have_text("–")
        expect(page.locator("#image[data-frame]")).to_have_count(0)
        sink.close()
        expect(page.locator("#veil")).to_contain_text("no connection to the camera")
        page.close()


@pytest.mark.slow
def test_login_page_accepts_the_token(browser):
    from playwright.sync_api import expect

    with WebSink("127.0.0.1", 0, LABELS, token=TOKEN) as sink:
        page = browser.new_page()
        page.goto(sink.url.partition("?")[0])
        page.fill("#token", TOKEN)
        page.click("button")
        expect(page.locator("#image")).to_be_visible()
        expect(page.locator("#no-saving")).to_be_visible()
        sink.write(result(7, gray=200))
        expect(page.locator("#snapshot")).to_be_enabled()
        expect(page.locator("#wrong")).to_be_disabled()
        with page.expect_download() as download:  # a snapshot needs no folder on the camera
            page.click("#snapshot")
        assert (cv2.imread(str(download.value.path())) == 200).all()
        expect(page.locator("#toast")).to_have_text(f"Downloading {download.value.suggested_filename}")
        page.reload()
        expect(page.locator("#image")).to_be_visible()
        page.close()


@pytest.mark.slow
def test_page_selects_a_live_source(browser):
    from playwright.sync_api import expect

    with WebSink("127.0.0.1", 0, LABELS) as sink:
        page = browser.new_page()
        shown = page.locator(".source[aria-pressed='true'] .name")
        sink.write(result(7, source="clip"))
        sink.state(state_change("ended", "clip"))
        sink.state(state_change("connecting", "yard"))
        page.goto(sink.url)
        expect(shown).to_have_text("clip")  # no source is live yet
        expect(page.locator("#veil")).to_have_text(re.compile(r"^\s*ended\s*(<1|\d) s ago\s*$"))
        sink.state(state_change("live", "yard"))
        sink.write(result(9, 1, "yard", gray=90))
        expect(shown).to_have_text("yard")
        expect(page.locator("#image[data-frame='9']")).to_be_visible()
        sink.state(state_change("live", "hall"))
        sink.write(result(3, 2, "hall", gray=10))
        expect(page.locator(".source")).to_have_count(3)
        expect(shown).to_have_text("yard")

        start = time.monotonic()
        page.locator(".source").nth(2).click()
        expect(page.locator("#image[data-frame='3']")).to_be_visible()
        # The pending request for the next image of "yard" is aborted.
        assert time.monotonic() - start < routes.IMAGE_WAIT_S - 1
        page.locator(".source").nth(0).click()
        page.reload()
        expect(shown).to_have_text("yard")  # the first live source
        page.locator(".source").nth(0).click()
        sink.write(result(10, 0, "yard"))
        sink.state(state_change("connecting", "shed"))
        expect(page.locator(".source")).to_have_count(4)
        expect(shown).to_have_text("clip")  # the user has selected this source
        sink.state(state_change("lost", "yard"))
        page.locator(".source").nth(1).click()
        expect(page.locator("#veil-reason")).to_have_text(re.compile(r"^for (<1|\d) s$"))
        page.close()


@pytest.mark.slow
def test_list_shows_the_decisions_of_the_selected_source(browser):
    from playwright.sync_api import expect

    def grabbed(template, ago_s):
        return replace(template, frame=replace(template.frame, grabbed_s=time.monotonic() - ago_s))

    with WebSink("127.0.0.1", 0, LABELS) as sink:
        for source in ("front", "yard"):
            sink.state(state_change("live", source))
        for number in range(20):
            sink.write(grabbed(result(number, number % 2, "yard"), 300 - number * 0.01))
        for number, (template, ago_s) in enumerate(
            [(result(0), 200), (uncertain_result(1, 1), 75.5), (result(2, 2), 75), (result(3), 5)]
        ):
            sink.write(grabbed(replace(template, frame=replace(template.frame, index=number)), ago_s))
        page = browser.new_page()
        page.goto(sink.url)
        rows = page.locator("#story li:not(.state)")
        expect(page.locator("#story-head")).to_have_text("StartLabelScoreDuration")
        expect(page.locator("#story-title")).to_have_text("Decisions · front")
        expect(rows.locator(".what")).to_have_text(["stop", "no entry", UNKNOWN, "stop"])
        expect(rows.locator(".score")).to_have_text(["80 %", "80 %", "", "80 %"])
        expect(rows.locator(".long")).to_have_text([re.compile(r"^\d+ s$"), "1 min", "<1 s", "2 min"])
        expect(rows.locator(".more")).to_have_text(["best: yield (66 %)"])
        stood = page.locator("#story li:first-child .long")
        first = stood.text_content()
        expect(stood).not_to_have_text(first)  # the duration increases

        expect(page.locator("#best")).to_have_text("")
        sink.write(uncertain_result(4, 1))
        expect(page.locator("#label")).to_have_text(UNKNOWN)
        expect(page.locator("#score")).to_have_text("")
        expect(page.locator("#best")).to_have_text("best: yield (66 %)")

        page.locator(".source").nth(1).click()
        expect(page.locator("#story-title")).to_have_text("Decisions · yard")
        expect(rows).to_have_count(20)
        expect(rows.locator(".long").nth(1)).to_have_text("<1 s")
        expect(page.locator("#best")).to_have_text("")
        page.close()


@pytest.mark.slow
def test_page_fits_a_phone_and_escapes_hostile_labels(browser):
    from playwright.sync_api import expect

    labels = ("<img src=x onerror=alert(1)>", "long" * 60, "y")
    with WebSink("127.0.0.1", 0, labels) as sink:
        page = browser.new_page(viewport={"width": 360, "height": 740})
        asked = []
        page.on("dialog", lambda dialog: asked.append(dialog) or dialog.dismiss())
        now = time.monotonic()
        scores = np.array([0.6, 0.3, 0.1], np.float32)
        sink.state(state_change("live", "rtsp://camera.example/" + "x" * 200))
        for index in (1, 0):
            decision = Decision(labels[index], index, 0.6, now, True)
            frame = Frame(np.zeros((48, 64, 3), np.uint8), index, now, "front", "rtsp://camera.example/" + "x" * 200)
            sink.write(Result(frame, decide(scores, labels, DecisionSpec()), now, decision))
        page.goto(sink.url)
        expect(page.locator("#label")).to_have_text(labels[0])
        expect(page.locator("#story li")).to_have_count(3)
        assert page.locator("main img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for name in ("#wrong", "#image", "#band", "#figures"):
            box = page.locator(name).bounding_box()
            assert (box["x"] >= 0, box["x"] + box["width"] <= 360) == (True, True), name
        assert asked == []
        page.close()


def gray_value_of(page) -> int:
    """Return the red value of a pixel of the image on the page."""
    return page.locator("#image").evaluate("canvas => canvas.getContext('2d').getImageData(9, 9, 1, 1).data[0]")


def test_page_files_are_package_data():
    import edgerec.camera.sinks.web as package

    folder = Path(package.__file__).parent / "page"
    assert {path.name for path in folder.iterdir()} >= {"page.html", "page.css", "page.js", "door.html", "icon.svg"}
