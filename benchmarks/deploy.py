"""Measure what a deployment sends, and how long it takes, on a device with a real SSH server on this machine.

    sudo python benchmarks/deploy.py BUNDLE

The bundle must be for this machine's architecture, such as one for the target desktop-linux. Its configuration has a
synthetic source. The second deployment must send less than 100 kB and take less than 5 s.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgerec import DeployOptions, deploy_bundle
from edgerec.errors import DeployError
from tests.deploy.device import TestDevice

MAX_BYTES, MAX_S = 100_000, 5.0


def main(bundle: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "camera.toml")
        config.write_text('sources = ["synthetic:64x48@20"]\noutput = "none"\n')
        with TestDevice(Path(folder, "device"), size="4g") as device:
            for name in ("first", "second"):
                try:
                    result = deploy_bundle(bundle, device.device, DeployOptions(config=config))
                except DeployError as error:
                    print(*error.log, error, sep="\n")
                    return 1
                print(f"{name:8} {result.sent_bytes:>12,} bytes {result.seconds:>7.1f} s  changed: {result.changed}")
    return 0 if result.sent_bytes < MAX_BYTES and result.seconds < MAX_S else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
