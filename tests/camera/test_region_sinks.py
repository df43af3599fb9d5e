"""Tests of the sinks with named regions."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgerec import CameraConfig, run_camera
from edgerec.camera.config import (
    CsvConfig,
    ImageRecorderConfig,
    MetricsConfig,
    RegionConfig,
    VideoConfig,
    WebhookConfig,
    WebPageConfig,
)
from edgerec.camera.frame import Frame, FrameRegion, Result
from edgerec.camera.sinks import window
from edgerec.camera.sinks.console import TextLines
from edgerec.camera.sinks.csv import CsvFile
from edgerec.camera.sinks.discovery_topics import MAX_TOPICS, DiscoveryTopics
from edgerec.camera.sinks.homeassistant import discovery
from edgerec.camera.sinks.image_recorder import ImageRecorder
from edgerec.camera.sinks.mqtt import Mqtt
from edgerec.camera.sinks.mqtt_client import Broker
from edgerec.camera.sinks.prometheus import Prometheus
from edgerec.camera.sinks.video import VideoFile
from edgerec.camera.sinks.web import WebSink
from edgerec.camera.sinks.webhook import Webhook, WebhookAddress
from edgerec.camera.sinks.window import RegionOverlay
from edgerec.contract.decision import Category, Classification, Decision
from edgerec.contract.status import parse_status
from edgerec.errors import EdgerecError
from tests.camera.test_sink_prometheus import samples
from tests.camera.test_sink_webhook import Server
from tests.camera.test_web import browser, send_request  # noqa: F401
from tests.network import MANIFEST, Mosquitto, MqttSubscriber, state_change, wait_for

REGIONS = {"camera": ("door", "window")}
BOXES = {"door": (0, 0, 40, 60), "window": (50, 10, 110, 60)}
LABELS = ("stop", "go")


def region_result(
    region, label="stop", index=0, *, source="camera", since_s=0.0, score=0.75, is_last=None, shape=(60, 120)
):
    """Return a result for a gray image of a region, or of the whole frame if ``region`` is None."""
    now = time.monotonic()
    whole = np.full((*shape, 3), 100, np.uint8)
    image, part = whole, None
    if region is not None:
        left, top, right, bottom = BOXES[region]
        image = whole[top:bottom, left:right]
        part = FrameRegion(region, BOXES[region], whole, region == "window" if is_last is None else is_last)
    number = LABELS.index(label)
    scores = np.full(2, 1 - score, np.float32)
    scores[number] = score
    prediction = Classification(label, number, score, (Category(label, number, score),), scores)
    frame = Frame(image, index, now, source, source, region=part)
    return Result(frame, prediction, now, Decision(label, number, score, since_s, False))


@pytest.fixture(scope="module")
def pair_outputs(bundle, golden_images, tmp_path_factory):
    """Run a camera with two regions and all sinks that write files, and return the folder and report.

    The left half of the video shows the digits 0 to 9, and the right half shows 9 to 0.
    """
    folder = tmp_path_factory.mktemp("pair")
    writer = cv2.VideoWriter(str(folder / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, (240, 120))
    digits = [cv2.resize(cv2.imread(str(image)), (120, 120)) for image in golden_images]
    for digit, other in zip(digits, reversed(digits), strict=True):
        writer.write(np.hstack([digit, other]))
    writer.release()
    server = Server(200)
    try:
        report = run_camera(
            CameraConfig(
                bundle=bundle,
                sources=str(folder / "in.avi"),
                output="none",
                regions=(RegionConfig("left", (0, 0, 0.5, 1)), RegionConfig("right", (0.5, 0, 0.5, 1))),
                csv=CsvConfig(folder / "out.csv"),
                video=VideoConfig(folder / "out.avi"),
                images=ImageRecorderConfig(folder / "saved", rule="all", png=True, reserve_bytes=0),
                webhook=WebhookConfig(server.url, every_result=True),
                status_file=folder / "status.json",
            )
        )
    finally:
        server.close()
    return folder, report, [json.loads(body) for _, _, body in server.requests]


def test_file_sinks_of_a_camera_lose_no_region(pair_outputs):
    folder, report, requests = pair_outputs
    assert (report.classified, report.dropped, report.exit_code) == (20, {}, 0)
    with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    keys = [(str(index), region) for index in range(10) for region in ("left", "right")]
    assert [(row["frame"], row["region"]) for row in table] == keys
    assert [(str(value["frame"]), value["region"]) for value in requests] == keys
    assert [row["label"] for row in table] == [value["label"] for value in requests]
    saved = list((folder / "saved").glob("*/*.png"))
    assert {cv2.imread(str(path)).shape for path in saved} == {(120, 120, 3)}
    counts = [sum(f"{name}_" in path.name for path in saved) for name in ("left", "right")]
    assert counts == [10, 10]


def test_status_file_has_the_state_of_each_region(pair_outputs):
    folder, _, _ = pair_outputs
    status = parse_status((folder / "status.json").read_bytes())
    names = [f"{folder}/in.avi/{region}" for region in ("left", "right")]
    assert [(source["name"], source["state"]) for source in status["sources"]] == [(name, "ended") for name in names]
    assert (status["frames"], status["last"]["source"]) == (20, names[1])


def test_video_has_each_frame_once_with_all_boxes(pair_outputs):
    folder, _, _ = pair_outputs
    capture = cv2.VideoCapture(str(folder / "out.avi"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 10
    _, image = capture.read()
    capture.release()
    image = image[:360]  # Remove the bar below the enlarged frame.
    assert image.shape[1] == 720
    for left, right in ((0, 359), (360, 719)):
        edges = [image[100:300, left : left + 2], image[100:300, right - 1 : right + 1]]
        assert all(edge.mean() > 200 for edge in edges)


def test_console_lines_name_the_region(bundle, golden_images, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(golden_images[0].read_bytes())
    regions = (RegionConfig("top", (0, 0, 1, 0.5)), RegionConfig("all", (0, 0, 1, 1)))
    config = CameraConfig(bundle=bundle, sources=str(tmp_path / "images"), regions=regions, output="text")
    run_camera(config)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == [f"{tmp_path}/images/top", f"{tmp_path}/images/all"]
    run_camera(replace(config, output="json"))
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [value["region"] for value in objects if value["event"] == "result"] == ["top", "all"]
    assert not any("region" in value for value in objects if value["event"] == "state")


def test_text_lines_of_a_source_without_regions_have_only_its_name(capsys):
    lines = TextLines(sys.stdout, named=True)
    lines.write(region_result("door"))
    lines.write(region_result(None, source="yard"))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["camera/door", "yard"]


def test_csv_column_is_empty_for_a_source_without_regions(tmp_path):
    path = tmp_path / "t.csv"
    table = CsvFile(path, regions=True)
    for region in ("door", None):
        table.write(region_result(region))
    table.close()
    with path.open(newline="", encoding="utf-8") as file:
        assert [row["region"] for row in csv.DictReader(file)] == ["door", ""]
    with pytest.raises(EdgerecError, match="its first line is not the CSV header"):
        CsvFile(path, "append")  # The file of a camera without regions has different columns.
    CsvFile(path, "append", regions=True).close()


def test_image_recorder_limits_the_rate_and_detects_changes_of_each_region(tmp_path):
    def saved(**options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        recorder = ImageRecorder(ImageRecorderConfig(folder, reserve_bytes=0, **options), LABELS)
        for index in range(3):
            for region in ("door", "window"):
                result = region_result(region, "go" if region == "door" else "stop", index)
                recorder.write(replace(result, decision=None))
        recorder.close()
        return sorted(re.sub(r".*_(camera-\w+?)_.*", r"\1", path.name) for path in folder.glob("*/*.jpg"))

    assert saved(rule="changes") == ["camera-door", "camera-window"]
    assert saved(rule="all", min_interval_s=60) == ["camera-door", "camera-window"]


def test_video_is_complete_if_the_last_region_of_a_frame_is_missing(tmp_path):
    """A live camera may drop the last region's result, or stop before classifying the last region."""
    video = VideoFile(tmp_path / "v.avi", live=False)
    for index, region in enumerate(("door", "window", "door")):
        video.write(region_result(region, index=index))
    video.close()
    capture = cv2.VideoCapture(str(tmp_path / "v.avi"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    capture.release()


def test_overlay_draws_the_latest_label_of_regions_without_motion():
    regions = RegionOverlay()
    regions.add(region_result("door"))
    with_door = regions.draw(0.0)
    regions.add(region_result("window", index=1))
    both = regions.draw(0.0)
    factor = 6  # The window enlarges the frame from 60 to 360 pixels.
    assert both.shape == (60 * factor + 28, 120 * factor, 3)
    door, window_edge = both[200:300, :2], both[200:300, 50 * factor : 50 * factor + 2]
    assert (door == 255).all()
    assert (window_edge == 255).all()
    assert (with_door[200:300, 50 * factor : 50 * factor + 2] == 100).all()
    # Boxes of the previous frame size must be removed.
    regions.add(region_result("window", index=2, shape=(360, 120)))
    assert (regions.draw(0.0)[20:60, :2] == 100).all()


def test_window_shows_each_frame_once(monkeypatch):
    shown = []
    monkeypatch.setattr(window, "has_screen", lambda: True)
    for name in ("namedWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image.copy()))
    sink = window.Window()
    for index in range(3):
        for region in ("door", "window"):
            sink.write(region_result(region, index=index))
    sink.write(region_result(None, source="yard"))
    sink.close()
    assert [image.shape[0] for image in shown] == [388, 388, 388, 416]


def test_webhook_sends_the_decisions_of_each_region():
    server = Server(200)
    webhook = Webhook(WebhookAddress.parse(server.url))
    for index in range(4):  # The door's decision changes at frame 2.
        webhook.write(region_result("door", "stop" if index < 2 else "go", index, since_s=index // 2))
        webhook.write(region_result("window", "stop", index))
    wait_for(lambda: webhook.sent == 3)
    webhook.close()
    server.close()
    events = [json.loads(body) for _, _, body in server.requests]
    assert [(e["source"], e["region"], e["label"], e["frame"]) for e in events] == [
        ("camera", "door", "stop", 0),
        ("camera", "window", "stop", 0),
        ("camera", "door", "go", 2),
    ]


# MQTT and Home Assistant.


@pytest.fixture
def broker(tmp_path):
    (tmp_path / "broker").mkdir()
    running = Mosquitto(tmp_path / "broker").start()
    yield running
    running.stop()


def is_announcement(topic, payload):
    return topic.startswith("homeassistant/") and payload != b""


def test_former_regions_are_removed_from_home_assistant(broker, tmp_path):
    subscriber, runs = MqttSubscriber(broker), itertools.count(1)

    def announce(name, **regions):
        """Run the sink, and return the IDs of the entities that Home Assistant has afterwards."""
        address = Broker("127.0.0.1", broker.port, prefix="home")
        manifest = type(MANIFEST)(**vars(MANIFEST) | {"name": name})
        with contextlib.closing(Mqtt(address, tmp_path, manifest, sources=("camera", "yard"), regions=regions)) as sink:
            wait_for(lambda: sink.connected)
            sink.state(state_change("live"))
            sink.state(state_change("live", "yard"))
            wait_for(lambda: sink.waiting == 0)
        run = next(runs)
        wait_for(lambda: subscriber.payloads("home/status").count(b"offline") == run)
        last = {topic: payload for topic, payload, _ in subscriber.messages if "/config" in topic}
        return {topic.split("/")[3] for topic, payload in last.items() if payload}

    yard = {"yard-label", "yard-score", "yard-live"}
    door, window = {"camera-door-label", "camera-door-score"}, {"camera-window-label", "camera-window-score"}
    camera = {"camera-label", "camera-score"}
    assert announce("signs") - {"camera-live"} == camera | yard
    for file in tmp_path.glob("*-discovery.json"):  # as if an older version, which had no such file, had announced them
        file.unlink()
    assert announce("signs", camera=("door", "window")) - {"camera-live"} == door | window | yard
    assert announce("signs", camera=("door",)) - {"camera-live"} == door | yard
    # The entities of another bundle's device are kept, because dashboards may refer to them.
    assert announce("letters") - {"camera-live"} == door | camera | yard
    assert announce("signs") - {"camera-live"} == camera | yard
    subscriber.close()


def test_damaged_file_of_discovery_topics_is_replaced(tmp_path):
    path = tmp_path / "topics.json"
    for content in ("[", "[]", '{"camera": 1}', '{"camera": [1]}'):
        path.write_text(content)
        assert DiscoveryTopics(path).add("camera", ["a"]) == ["a"]
        assert DiscoveryTopics(path).add("camera", ["b"]) == ["b", "a"]
    topics = DiscoveryTopics(tmp_path)  # a folder
    assert topics.add("camera", ["a"]) == ["a"]
    assert len(topics.add("camera", map(str, range(5000)))) == MAX_TOPICS


def test_mqtt_topics_contain_the_region(broker, tmp_path):
    subscriber = MqttSubscriber(broker)
    sink = Mqtt(
        Broker("127.0.0.1", broker.port, prefix="home"),
        tmp_path / "out",
        MANIFEST,
        results_per_s=float("inf"),
        sources=("camera", "yard"),
        regions=REGIONS,
    )
    wait_for(lambda: sink.connected)
    sink.state(state_change("live"))
    for index in range(3):
        sink.write(region_result("door", "go", index))
        sink.write(region_result("window", "stop", index))
        sink.write(region_result(None, "stop", index, source="yard"))
    wait_for(lambda: len(subscriber.payloads("home/yard/result")) == 3 and sink.waiting == 0)
    wait_for(lambda: len([1 for topic, payload, _ in subscriber.messages if is_announcement(topic, payload)]) == 8)
    sink.close()
    for topic, region, label in (
        ("camera/door", "door", "go"),
        ("camera/window", "window", "stop"),
        ("yard", None, "stop"),
    ):
        (decision,) = map(json.loads, subscriber.payloads(f"home/{topic}/decision"))
        assert (decision["source"], decision.get("region"), decision["label"]) == (
            topic.partition("/")[0],
            region,
            label,
        )
        results = list(map(json.loads, subscriber.payloads(f"home/{topic}/result")))
        assert [(value["frame"], value["label"]) for value in results] == [(index, label) for index in range(3)]
    assert len(subscriber.payloads("home/camera/state")) == 1
    assert subscriber.payloads("home/camera/decision") == []
    announced = [json.loads(payload) for topic, payload, _ in subscriber.messages if is_announcement(topic, payload)]
    published = {topic for topic, _, _ in subscriber.messages}
    assert {entity["state_topic"] for entity in announced} - {"home/yard/state"} <= published
    subscriber.close()


def test_home_assistant_has_one_device_with_sensors_for_each_region():
    messages = discovery(MANIFEST, "home", "camera", ["camera", "yard"], REGIONS)
    entities = list(messages.values())
    assert [(entity["name"], entity["state_topic"]) for entity in entities] == [
        ("camera door label", "home/camera/door/decision"),
        ("camera door score", "home/camera/door/decision"),
        ("camera window label", "home/camera/window/decision"),
        ("camera window score", "home/camera/window/decision"),
        ("camera live", "home/camera/state"),
    ]
    assert len({json.dumps(entity["device"]) for entity in entities}) == 1
    assert len({entity["unique_id"] for entity in entities}) == 5
    assert all(re.fullmatch(r"[\w-]+/[\w-]+/[\w-]+/config", topic) for topic in messages)
    assert discovery(MANIFEST, "home", "yard", ["camera", "yard"], REGIONS) == discovery(
        MANIFEST, "home", "yard", ["camera", "yard"]
    )


def test_home_assistant_ids_of_similar_names_differ():
    regions = {"cam": ("a-b", "c"), "cam-a": ("b", "c")}
    messages = [discovery(MANIFEST, "home", source, list(regions), regions) for source in regions]
    topics = [topic for each in messages for topic in each]
    ids = [entity["unique_id"] for each in messages for entity in each.values()]
    assert len(set(topics)) == len(set(ids)) == 10


# Prometheus.


def test_prometheus_has_a_label_for_the_region():
    pytest.importorskip("prometheus_client", reason="no prometheus-client")
    with Prometheus(MANIFEST, port=0, sources=["camera", "yard"], regions=True) as sink:
        sink.state(state_change("live"))
        for index in range(3):
            sink.write(region_result("door", "go", index, score=0.5))
            sink.write(region_result("window", "stop", index))
        sink.write(region_result(None, source="yard"))
        metrics = samples(sink.port)
    assert metrics["edgerec_frames_total", "camera", "door"] == 3
    assert metrics["edgerec_frames_total", "", "yard"] == 1
    assert metrics["edgerec_score", "camera", "door"] == 0.5
    assert metrics["edgerec_score", "camera", "window"] == 0.75
    assert metrics["edgerec_decisions_total", "camera", "door", "go"] == 1
    assert metrics["edgerec_decisions_total", "camera", "stop", "window"] == 1
    assert metrics["edgerec_result_age_seconds_count", "camera", "window"] == 3
    assert metrics["edgerec_source_state", "camera", "live"] == 1


# Web page.


@pytest.fixture
def page_sink(tmp_path):
    with WebSink("127.0.0.1", 0, LABELS, save_dir=tmp_path / "saved", regions=REGIONS) as sink:
        sink.state(state_change("connecting"))
        sink.state(state_change("live"))
        sink.write(region_result("door", "go", 7))
        sink.write(region_result("window", "stop", 7))
        yield sink


def test_page_lists_regions_with_the_state_of_their_source(page_sink):
    page_sink.state(state_change("stale", reason="no frame"))
    news = page_sink.page_state.news(0)
    sources = news["sources"]
    assert [(s["name"], s["source"], s["region"], s["state"]) for s in sources] == [
        ("camera/door", "camera", "door", "stale"),
        ("camera/window", "camera", "window", "stale"),
    ]
    assert [source["prediction"]["label"] for source in sources] == ["go", "stop"]
    assert sources[1]["box"] == [round(50 / 120, 5), round(10 / 60, 5), round(110 / 120, 5), 1.0]
    story = [entry.get("label") or entry["state"] for entry in news["story"] if entry["source"] == "camera/door"]
    assert story == ["connecting", "live", "go", "stale"]


def decoded(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def test_page_shows_the_whole_frame_and_saves_the_region(page_sink, tmp_path):
    for number in (0, 1):
        response = send_request(page_sink, f"/image/{number}")
        assert (response.status, decoded(response.body).shape) == (200, (60, 120, 3))
    held = json.loads(send_request(page_sink, "/hold", "POST", {"source": 1, "frame": 7}).body)
    assert (held["label"], re.sub(r"-\d.*", "", held["file"])) == ("stop", "camera-window")
    for path in (f"/held/{held['hold']}", f"/held/{held['hold']}/file"):
        assert decoded(send_request(page_sink, path).body).shape == (50, 60, 3)
    response = send_request(page_sink, "/save", "POST", {"hold": held["hold"], "index": 1})
    assert response.status == 200, response.body
    (path,) = (tmp_path / "saved").glob("*/*.png")
    assert (path.parent.name, path.stem.rpartition("-")[2]) == ("go", "window")
    assert cv2.imread(str(path)).shape == (50, 60, 3)


def test_page_without_regions_sends_no_additional_fields():
    with WebSink("127.0.0.1", 0, LABELS) as sink:
        sink.write(region_result(None))
        (source,) = sink.page_state.news(0)["sources"]
    assert not {"source", "region", "box"} & set(source)


@pytest.mark.slow
def test_boxes_in_a_browser_show_the_labels_and_select_a_region(page_sink, browser):  # noqa: F811
    from playwright.sync_api import expect

    complaints = []
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.goto(page_sink.url)
    texts = page.locator("#boxes text")
    expect(texts).to_have_text(["door: go 75 %", "window: stop 75 %"])
    expect(page.locator("#label")).to_have_text("go")
    image, box = page.locator("#image").bounding_box(), page.locator("#boxes rect").nth(1).bounding_box()
    scale = min(image["width"] / 120, image["height"] / 60)
    left = image["x"] + (image["width"] - 120 * scale) / 2
    assert box["x"] == pytest.approx(left + 50 * scale, abs=3)
    assert box["width"] == pytest.approx(60 * scale, abs=5)
    page.locator("#boxes g").nth(1).click()
    expect(page.locator("#label")).to_have_text("stop")
    expect(page.locator("#boxes g.selected text")).to_have_text("window: stop 75 %")
    expect(page.locator("#story-source")).to_have_text(" · camera/window")
    page_sink.write(region_result("window", "go", 8))
    expect(texts).to_have_text(["door: go 75 %", "window: go 75 %"])
    assert complaints == []


def test_camera_with_regions_starts_its_servers(bundle, golden_images, tmp_path):
    (tmp_path / "0.png").write_bytes(golden_images[0].read_bytes())
    report = run_camera(
        CameraConfig(
            bundle=bundle,
            sources=str(tmp_path),
            output="none",
            max_frames=2,
            regions=(RegionConfig("top", (0, 0, 1, 0.5)), RegionConfig("all", (0, 0, 1, 1))),
            metrics=MetricsConfig("127.0.0.1:0"),
            web=WebPageConfig("127.0.0.1:0"),
        )
    )
    assert (report.classified, report.dropped) == (2, {})
