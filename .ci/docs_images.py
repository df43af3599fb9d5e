"""Create the images of the documentation from real runs: plots, a contact sheet, the report, and the web page.

    python .ci/docs_images.py WORK_FOLDER

Needs Chromium. The images are written to ``docs/images/``. The work folder keeps the run, so a second call is fast.
"""

from __future__ import annotations

import contextlib
import http.server
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
TOKEN = "documentation"


def edgerec(work: Path, *arguments: str) -> None:
    """Run an edgerec command in the work folder."""
    subprocess.run([sys.executable, "-m", "edgerec", *arguments], cwd=work, check=True)


def prepare(work: Path) -> None:
    """Train a classifier and an autoencoder on the digits, export the classifier, and draw a report and a sheet."""
    if (work / "augmented.png").exists():
        return
    edgerec(work, "train", "--data", "digits", "--epochs", "12", "--out", "runs/digits")
    edgerec(work, "quantize", "runs/digits")
    edgerec(work, "export", "runs/digits", "--target", "rpi")
    edgerec(work, "report", "runs/digits", "--out", "report.html")
    edgerec(work, "train", "--data", "digits", "--arch", "autoencoder", "--epochs", "10", "--out", "runs/autoencoder")
    edgerec(work, "data", "show", "digits", "--augment", "--out", "augmented.png")


class Camera(http.server.BaseHTTPRequestHandler):
    """An MJPEG camera that shows the golden images of the bundle, for three seconds each."""

    golden: Path

    def do_GET(self) -> None:
        """Send frames until the client disconnects."""
        import cv2

        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):
            for path in itertools.cycle(sorted(self.golden.glob("*.png"))):
                image = cv2.resize(cv2.imread(str(path)), (320, 320), interpolation=cv2.INTER_CUBIC)
                frame = cv2.imencode(".jpg", image)[1].tobytes()
                for _ in range(30):
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n"
                    self.wfile.write(head.encode() + frame + b"\r\n")
                    time.sleep(0.1)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def take_screenshots(work: Path, browser: Any) -> None:
    """Take screenshots of the report and of the camera's web page."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.goto((work / "report.html").as_uri())
    page.wait_for_timeout(500)
    page.screenshot(path=IMAGES / "report.png")
    Camera.golden = work / "runs" / "digits-rpi" / "golden"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8081), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, "-m", "edgerec", "camera", "runs/digits-rpi", "--source", "http://127.0.0.1:8081/camera"]
    command += ["--headless", "--web", "127.0.0.1:0"]
    environment = os.environ | {"EDGEREC_WEB_TOKEN": TOKEN}
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as camera:
        try:
            address = ""
            while not address:
                line = (camera.stderr.readline() if camera.stderr else b"").decode()
                if not line:
                    raise SystemExit("edgerec camera ended without an address; run it by hand to see why")
                address = "".join(re.findall(r"http://127\.0\.0\.1:\d+", line))
            page = browser.new_page(viewport={"width": 1000, "height": 640})
            page.goto(f"{address}/?token={TOKEN}")
            page.wait_for_timeout(13_000)
            page.screenshot(path=IMAGES / "web-page.png")
        finally:
            camera.terminate()


def main() -> None:
    """Write all images."""
    from playwright.sync_api import sync_playwright

    work = Path(sys.argv[1]).resolve()
    work.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(exist_ok=True)
    prepare(work)
    for name in ("learning_curves.png", "confusion_matrix.png"):
        shutil.copyfile(work / "runs" / "digits" / "plots" / name, IMAGES / name.replace("_", "-"))
    shutil.copyfile(work / "runs" / "autoencoder" / "plots" / "reconstructions.png", IMAGES / "reconstructions.png")
    shutil.copyfile(work / "augmented.png", IMAGES / "augmented-digits.png")
    with sync_playwright() as tool:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        take_screenshots(work, browser)
        browser.close()


if __name__ == "__main__":
    main()
