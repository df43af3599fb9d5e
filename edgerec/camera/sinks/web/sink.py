"""Sink that serves a web page with the live image and the predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from edgerec.camera.frame import Result
from edgerec.camera.sinks.web.label_store import MAX_BYTES, LabelStore
from edgerec.camera.sinks.web.state import PageState
from edgerec.camera.source_state import StateChange
from edgerec.http.server_address import allowed_names, listen, server_url
from edgerec.http.token import required_token
from edgerec.utils.atomic import checked_output
from edgerec.utils.optional import require

log = logging.getLogger(__name__)


class WebSink:
    """Serves a web page with the live image and the predictions until :meth:`close` is called.

    Attributes:
        url: the page's address including the token. It is never logged.
        address: the page's address without the token.
        page_state: the page's state.
        token: token required from visitors, or None if every user of this machine may open the page.
        closed: always False because the page never stops the camera.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        labels: Sequence[str] = (),
        token: str | None = None,
        save_dir: str | Path | None = None,
        save_max_bytes: int = MAX_BYTES,
        *,
        regions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Start the web server.

        Args:
            host: address to listen on. All addresses except loopback addresses require a token. If ``token`` is None, a
                random token is generated.
            port: port to listen on. 0 selects a free port.
            labels: the bundle's labels, in the order of the model's outputs.
            token: token required from visitors, at least 8 characters.
            save_dir: folder for labeled images, which are saved as ``DIR/LABEL/….png``. None disables saving.
            save_max_bytes: maximum total size of the files in ``save_dir``. No more images are saved when it is
                reached.
            regions: names of the regions of each source, keyed by source.

        Raises:
            EdgerecError: the port is in use, the address does not belong to this machine, the token is too short, or
                ``save_dir`` cannot be written.
            MissingExtraError: Starlette, uvicorn or OpenCV is not installed.
        """
        for module in ("starlette", "uvicorn", "cv2"):
            require(module)
        required = required_token(token, host, "the web page")
        folder = None if save_dir is None else checked_output(save_dir, folder=True)
        label_store = None if folder is None else LabelStore(folder, labels, save_max_bytes)
        self.outputs = () if folder is None else (folder,)
        self.closed, self.name = False, "web"
        self.token = required
        listener = listen(host, port, "the web server")
        port = listener.getsockname()[1]
        self.address = server_url(host, port)
        self.url = self.address + (f"?token={quote(self.token, safe='')}" if self.token else "")
        self.page_state = PageState(regions)

        from edgerec.camera.sinks.web.routes import LOGIN_PAGE_FILES, Page, page_file
        from edgerec.http.auth import AccessControl
        from edgerec.http.server import Server

        page = Page(self.page_state, labels, label_store).app()
        guard = AccessControl(
            page,
            token=self.token,
            names=allowed_names(host),
            port=port,
            login_page=page_file("door.html"),
            open_paths=LOGIN_PAGE_FILES,
        )
        self._server: Server | None = Server(guard, listener)
        self._server.start()
        log.info("the web page is at %s", self.address)

    def __enter__(self) -> WebSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, result: Result) -> None:
        """Store a result for the web page. Only the newest image is kept."""
        self.page_state.write(result)

    def state(self, change: StateChange) -> None:
        """Store a state change."""
        self.page_state.state(change)

    def close(self) -> None:
        """Stop the server and its thread."""
        self.page_state.closed = True
        if self._server is not None:
            self._server.stop()
            self._server = None
