"""Cameras and predictions with reduced decoding of JPEG images."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from edgerec import Camera, CameraConfig, predict, run_camera
from edgerec.camera.frame_filters import FrameOptions
from edgerec.camera.regions import RegionConfig
from edgerec.camera.source_state import StateChange
from tests.servers import MjpegServer, Peer, jpeg, number_of

SIZE = (160, 120)
# 1/4 is the largest reduction, because the margins of the crop are 20 pixels.
REDUCED = (30, 40, 3)


def send_single_image(peer: Peer) -> None:
    body = jpeg(7, SIZE)
    peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture
def photos(golden_images, tmp_path):
    """Return a folder with JPEG images of digits, which are 30 times as large as the model's input."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in golden_images:
        image = cv2.resize(cv2.imread(str(path)), (240, 240), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{path.stem}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


@pytest.mark.parametrize("script", [None, send_single_image], ids=["stream", "single images"])
def test_frames_of_http_sources_are_decoded_at_reduced_size(bundle, script):
    with MjpegServer(*[script] if script else []) as server:
        for reduced_decoding, shape in ((False, (120, 160, 3)), (True, REDUCED)):
            with Camera.open(bundle, server.url, reduced_decoding=reduced_decoding) as camera:
                events = list(itertools.islice(camera.events(), 5))
            changes = [event for event in events if isinstance(event, StateChange)]
            frames = [event.frame for event in events if not isinstance(event, StateChange)]
            assert frames
            assert {frame.image.shape for frame in frames} == {shape}
            assert all(number_of(cv2.resize(frame.image, SIZE)) is not None for frame in frames)
            assert any(change.reason.startswith("160x120") for change in changes)


@pytest.mark.parametrize("roi", [(0, 64, 80, 56), (0, 64 / 120, 0.5, 56 / 120)])
def test_region_refers_to_the_size_of_the_camera(bundle, roi):
    with (
        MjpegServer() as server,
        Camera.open(bundle, server.url, frame_options=FrameOptions(roi=roi), reduced_decoding=True) as camera,
    ):
        frame = next(iter(camera)).frame
    assert frame.full_size == SIZE
    assert frame.image.shape == (28, 40, 3)
    # The region is in the lower half of the image, which has a single color.
    assert np.ptp(frame.image.reshape(-1, 3).astype(int), axis=0).max() < 16


def test_reduction_suits_all_named_regions(bundle):
    """The region ``upper`` alone would be reduced to 1/4."""
    regions = (RegionConfig("upper", (0, 0, 160, 120)), RegionConfig("lower", (0, 64, 80, 56)))
    with MjpegServer() as server, Camera.open(bundle, server.url, regions=regions, reduced_decoding=True) as camera:
        frames = {result.frame.region.name: result.frame for result in itertools.islice(camera, 2)}
    assert frames["upper"].image.shape == (60, 80, 3)
    assert frames["lower"].image.shape == (28, 40, 3)
    assert frames["lower"].region.box == (0, 32, 40, 60)
    assert frames["lower"].region.whole.shape == (60, 80, 3)


def test_region_with_unsuitable_edges_is_decoded_at_full_size(bundle):
    options = FrameOptions(roi=(1, 61, 77, 57))
    with (
        MjpegServer() as server,
        Camera.open(bundle, server.url, frame_options=options, reduced_decoding=True) as camera,
    ):
        frame = next(iter(camera)).frame
    assert frame.full_size is None
    assert frame.image.shape == (57, 77, 3)


def test_labels_of_photos_stay_the_same(bundle, photos):
    exact = [result.classification for result in predict(bundle, [photos])]
    reduced = [result.classification for result in predict(bundle, [photos], reduced_decoding=True)]
    assert [prediction.label for prediction in exact] == [prediction.label for prediction in reduced]
    difference = max(np.abs(np.subtract(a.scores, b.scores)).max() for a, b in zip(exact, reduced, strict=True))
    assert 0 < difference < 0.2


def test_camera_and_predict_give_the_same_scores_for_a_folder(bundle, photos):
    for reduced_decoding in (False, True):
        expected = [
            result.classification.scores for result in predict(bundle, [photos], reduced_decoding=reduced_decoding)
        ]
        with Camera.open(bundle, str(photos), reduced_decoding=reduced_decoding) as camera:
            scores = [result.classification.scores for result in camera]
        assert np.array_equal(scores, expected)


@pytest.mark.parametrize("reduced_decoding", [False, True])
def test_looped_folder_is_reduced_too(bundle, photos, reduced_decoding):
    class FrameShapes:
        closed = False

        def __init__(self) -> None:
            self.shapes = set()

        def write(self, result) -> None:
            self.shapes.add(result.frame.image.shape)

        def state(self, change) -> None:
            pass

        def close(self) -> None:
            pass

    sink = FrameShapes()
    run_camera(
        CameraConfig(
            bundle=bundle,
            sources=str(photos),
            loop=True,
            reduced_decoding=reduced_decoding,
            max_frames=25,
            output="none",
        ),
        [sink],
    )
    assert sink.shapes == {(30, 30, 3) if reduced_decoding else (240, 240, 3)}


def test_option_of_predict_reduces_photos(bundle, photos, invoke):
    exact, reduced = (invoke("predict", bundle, photos, "--json", *options) for options in ([], ["--reduced-decoding"]))
    assert exact.returncode == reduced.returncode == 0
    assert exact.stdout != reduced.stdout
