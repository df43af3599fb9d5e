"""A small replacement for edgerec on test devices, which simulates the failures that a bundle specifies.

The program provides the commands ``edgerec verify`` and ``edgerec camera``. The bundle's file ``behavior.json`` can
contain these keys:

* ``verify``: reason for which the verification fails.
* ``crash``, ``hang``: number of the frame at which the camera crashes or hangs.
* ``print``: whether the camera prints a line for each frame.
* ``idle``: whether the camera never delivers a frame.
* ``motion``: whether the camera skips all frames except for the first one.
"""

import hashlib
import json
import os
import socket
import sys
import time
from pathlib import Path


def notify(message):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(message, os.environ["NOTIFY_SOCKET"])


def camera(bundle, status_file, behavior):
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    started_s = time.time()
    notify(b"READY=1")
    sys.stderr.write(f"camera started with {digest[:16]}\n")
    for frames in range(1, 1_000_000):
        if behavior.get("print"):
            sys.stderr.write(f"frame {frames}\n")
        if frames == behavior.get("crash"):
            sys.exit("error: the model of this bundle crashes")
        while frames == behavior.get("hang"):
            time.sleep(1)
        status = {
            "version": 1,
            "pid": os.getpid(),
            "bundle": digest,
            "name": "small",
            "started_s": started_s,
            "updated_s": time.time(),
            "frames": 0 if behavior.get("idle") else 1 if behavior.get("motion") else frames,
            "fps": 50.0,
            "skipped": frames if behavior.get("motion") else 0,
            "invalid": 0,
            "temperature_c": None,
            "throttled": [],
            "sources": [
                {"name": "camera", "state": "lost", "reason": "no signal"}
                if behavior.get("idle")
                else {"name": "camera", "state": "live", "reason": ""}
            ],
            "last": {"source": "camera", "label": "red", "score": 0.5, "at_s": time.time()},
        }
        partial = status_file.with_suffix(".new")
        partial.write_text(json.dumps(status))
        partial.rename(status_file)
        notify(b"WATCHDOG=1")
        time.sleep(0.02)


def main():
    command, bundle, *options = sys.argv[1:]
    file = Path(bundle, "behavior.json")
    behavior = json.loads(file.read_text()) if file.exists() else {}
    if command == "verify":
        reason = behavior.get("verify")
        user = {"uid": os.getuid(), "gid": os.getgid(), "groups": sorted(os.getgroups()), "home": os.environ["HOME"]}
        folders = {"/etc/edgerec", "/opt/edgerec", "/opt/edgerec/releases", bundle, sys.prefix, user["home"]}
        user["writable"] = sorted(folder for folder in folders if os.access(folder, os.W_OK))
        print(json.dumps({"ok": not reason, "reason": reason, **user}))
        sys.exit(1 if reason else 0)
    camera(Path(bundle), Path(options[options.index("--status-file") + 1]), behavior)
