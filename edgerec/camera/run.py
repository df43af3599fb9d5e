"""Run a camera and all its sinks from a single :class:`CameraConfig`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from edgerec.camera.config import CameraConfig
from edgerec.camera.interrupts import Interrupts, raise_on_signals
from edgerec.camera.pipeline import Camera, RunReport
from edgerec.camera.service_notifier import ServiceNotifier
from edgerec.camera.sinks import Sink
from edgerec.camera.sinks.factory import close_on_error, open_sinks
from edgerec.utils.allocator import use_one_malloc_arena
from edgerec.utils.optional import require
from edgerec.utils.secret_references import warn_about_secrets

log = logging.getLogger(__name__)


def run_camera(config: CameraConfig, sinks: Iterable[Sink] = ()) -> RunReport:
    """Run a camera until its sources end, a limit is reached or the user stops it. Return its counters.

    This function does everything that ``edgerec camera`` does: it opens the bundle, the sources and the sinks, reports
    to the service manager, and stops cleanly on Ctrl-C and SIGTERM if it is called in the main thread. If all sources
    are files, the web page stays open after the last frame until the camera is stopped, unless ``max_frames`` is set.

    While the camera runs, OpenCV uses one thread. From then on, new threads in this process share one glibc malloc
    arena.

    Args:
        config: all settings.
        sinks: additional sinks; see :meth:`Camera.run`. They are closed at the end if the camera was started.

    Raises:
        EdgerecError: the bundle, a source or a sink cannot be opened, or all sources failed.
    """
    with raise_on_signals():
        use_one_malloc_arena()
        camera = _open_camera(config)
        cv2 = require("cv2")
        threads = cv2.getNumThreads()
        # OpenCV's threads would compete with the interpreter's threads and lower the frame rate.
        cv2.setNumThreads(1)
        try:
            with suppress(KeyboardInterrupt), Interrupts(camera.stop):
                more_sinks = list(sinks)
                own_sinks = open_sinks(config, camera)
                warn_about_secrets(config.addresses, [config.web.token or ""] if config.web else [])
                # Keep the web page open after a video file's last frame.
                keep_open = config.web is not None and not camera.live and config.max_frames is None
                if keep_open and not config.loop:
                    log.info(
                        "the web page stays open after the last frame until Ctrl-C is pressed; --max-frames stops "
                        "earlier"
                    )
                with ExitStack() as running:
                    with close_on_error(own_sinks):  # camera.run() closes the sinks itself.
                        running.enter_context(camera)
                    service = ServiceNotifier.from_environment()
                    camera.run([*own_sinks, *more_sinks], config.max_frames, service=service, keep_open=keep_open)
        finally:
            cv2.setNumThreads(threads)
    return camera.report


def _open_camera(config: CameraConfig) -> Camera:
    return Camera.open(
        config.bundle,
        config.sources,
        threads=config.threads,
        requested=config.capture,
        frame_options=config.frames,
        timeouts=config.timeouts,
        loop=config.loop,
        reduced_decoding=config.reduced_decoding,
        delegate=config.delegate,
        delegate_options=config.delegate_options,
        fallback=config.fallback,
        threshold=config.threshold,
        decision=config.decision,
        allowed_signers=config.allowed_signers,
        revoked_keys=config.revoked_keys,
        regions=config.regions,
    )
