"""Settings for a camera and its sinks, validated on creation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edgerec.camera.actions import MAX_ACTIONS, ActionConfig
from edgerec.camera.frame_filters import FrameOptions
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.regions import RegionConfig, check_regions
from edgerec.camera.sources.base import CaptureFormat
from edgerec.contract.decision import DecisionSpec
from edgerec.errors import AddressError, ConfigError
from edgerec.utils.host_port import parse_host_port

Output = Literal["window", "text", "json", "none"]
ExistingFile = Literal["refuse", "overwrite", "append"]
SaveRule = Literal["low-confidence", "changes", "all"]

MAX_THREADS = 256
# Field metadata for edgerec.camera.config_fields.
_SOURCE, _LIBRARY = {"content": "source"}, {"content": "library"}
_URL, _TOKEN = {"content": "url"}, {"content": "token"}


def _check_choice(field_name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(field_name, f"is {value!r}; expected one of {', '.join(get_args(choices))}")


def _check_address(field_name: str, address: str, port: int) -> tuple[str, int]:
    try:
        return parse_host_port(address, "127.0.0.1", port)
    except AddressError:
        raise ConfigError(
            field_name, f"is {address!r}; expected HOST:PORT, such as 127.0.0.1:{port}, with a port from 0 to 65535"
        ) from None


@dataclass(frozen=True)
class CsvConfig:
    """Settings for :class:`~edgerec.camera.sinks.csv.CsvFile`, which writes one row per frame.

    Attributes:
        path: the file, with the suffix .csv, .tsv, .txt or .log, or without a suffix.
        existing: what to do if the file exists: ``refuse`` raises an error, ``overwrite`` replaces a file that edgerec
            wrote, and ``append`` adds rows to a file with the same columns.
    """

    path: str | Path
    existing: ExistingFile = "refuse"

    def __post_init__(self) -> None:
        _check_choice("CsvConfig.existing", self.existing, ExistingFile)


@dataclass(frozen=True)
class VideoConfig:
    """Settings for :class:`~edgerec.camera.sinks.video.VideoFile`, which writes the frames with their predictions.

    Attributes:
        path: the file, with the suffix .mp4 or .avi.
        overwrite: replace existing files.
    """

    path: str | Path
    overwrite: bool = False


@dataclass(frozen=True)
class ImageRecorderConfig:
    """Settings for :class:`~edgerec.camera.sinks.image_recorder.ImageRecorder`, which saves images for training.

    Attributes:
        folder: folder for the images, with one subfolder per label.
        rule: frames to save: ``low-confidence``, ``changes`` (frames that change the decision), or ``all``.
        max_bytes: maximum total size of the images. The oldest images are deleted first.
        reserve_bytes: minimum free disk space. Images are also deleted to keep this space free.
        below: frames with a best score below this threshold have low confidence.
        margin: frames whose two best scores differ by at most this value also have low confidence.
        min_interval_s: minimum time in seconds between saved images from the same source or region.
        png: save lossless PNG files, which are several times as large as JPEG files.
    """

    folder: str | Path
    rule: SaveRule = "low-confidence"
    max_bytes: int = 500_000_000
    reserve_bytes: int = 200_000_000
    below: float = 0.6
    margin: float = 0.2
    min_interval_s: float = 0.0
    png: bool = False

    def __post_init__(self) -> None:
        _check_choice("ImageRecorderConfig.rule", self.rule, SaveRule)
        for name, least in {"max_bytes": 1, "reserve_bytes": 0, "min_interval_s": 0}.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"ImageRecorderConfig.{name}", f"is {getattr(self, name)}; expected at least {least}")
        for name in ("below", "margin"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"ImageRecorderConfig.{name}", f"is {getattr(self, name)}; expected 0 to 1")


@dataclass(frozen=True)
class MqttConfig:
    """Settings for :class:`~edgerec.camera.sinks.mqtt.Mqtt`, which publishes states and decisions.

    Attributes:
        url: ``mqtt[s]://user:password@host:port/prefix``, or ``env:NAME`` or ``@FILE`` to read the URL from.
            The password may also be in the environment variable ``EDGEREC_MQTT_PASSWORD``.
        results_per_s: maximum number of results to publish per second and source. 0 publishes none.
        discovery_prefix: topic prefix of Home Assistant's MQTT discovery. An empty string disables discovery.
        queue_dir: folder that stores messages while the broker is unreachable. None selects the cache folder.
    """

    url: str = field(repr=False, metadata=_URL)
    results_per_s: float = 0.0
    discovery_prefix: str = "homeassistant"
    queue_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.results_per_s >= 0:
            raise ConfigError("MqttConfig.results_per_s", f"is {self.results_per_s}; expected at least 0")


@dataclass(frozen=True)
class WebhookConfig:
    """Settings for :class:`~edgerec.camera.sinks.webhook.Webhook`, which sends HTTP POST requests.

    Attributes:
        url: ``http[s]://[user:password@]host[:port]/path``, or ``env:NAME`` or ``@FILE`` to read the URL from.
        secret: key for the signature of each request, or ``env:NAME`` or ``@FILE`` to read it from. None uses the
            environment variable ``EDGEREC_WEBHOOK_SECRET``.
        every_result: send every result instead of only new decisions.
    """

    url: str = field(repr=False, metadata=_URL)
    secret: str | None = field(default=None, repr=False, metadata=_TOKEN)
    every_result: bool = False


@dataclass(frozen=True)
class MetricsConfig:
    """Settings for :class:`~edgerec.camera.sinks.prometheus.Prometheus`, which serves metrics.

    Attributes:
        address: ``HOST:PORT``, ``HOST`` or ``PORT`` to listen on. Port 0 selects a free port.
    """

    address: str = "127.0.0.1:9464"

    def __post_init__(self) -> None:
        _ = self.host_port

    @property
    def host_port(self) -> tuple[str, int]:
        """Host and port parsed from :attr:`address`."""
        return _check_address("MetricsConfig.address", self.address, 9464)


@dataclass(frozen=True)
class WebPageConfig:
    """Settings for :class:`~edgerec.camera.sinks.web.WebSink`, which serves a page with the live image.

    Attributes:
        address: ``HOST:PORT``, ``HOST`` or ``PORT`` to listen on. Port 0 selects a free port.
        token: token required from visitors, at least 8 characters, or ``env:NAME`` or ``@FILE`` to read it from. None
            uses the environment variable ``EDGEREC_WEB_TOKEN``. If there is no token and other
            machines can reach the address, a random token is generated and printed.
        save_dir: folder for images that visitors label, with one subfolder per label. None disables saving.
        save_max_bytes: maximum total size of the files in ``save_dir``. No more images are saved when it is
            reached.
    """

    address: str = "127.0.0.1:8000"
    token: str | None = field(default=None, repr=False, metadata=_TOKEN)
    save_dir: str | Path | None = None
    save_max_bytes: int = 2_000_000_000

    def __post_init__(self) -> None:
        _ = self.host_port
        if self.save_max_bytes < 0:
            raise ConfigError("WebPageConfig.save_max_bytes", f"is {self.save_max_bytes}; expected at least 0")

    @property
    def host_port(self) -> tuple[str, int]:
        """Host and port parsed from :attr:`address`."""
        return _check_address("WebPageConfig.address", self.address, 8000)


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """All settings for :func:`~edgerec.camera.run.run_camera`.

    Attributes:
        bundle: the bundle's folder or .zip.
        allowed_signers: file of allowed signers. The camera refuses a bundle that none of them has signed. None accepts
            every bundle.
        revoked_keys: file of revoked keys. A bundle that was signed with one of these keys is refused.
        sources: one or more sources: ``auto``, ``0``, ``/dev/video0``, ``picamera2:0``, ``rtsp://…``, ``http://…``, a
            video file, a folder of images, ``synthetic:640x480@30``, or ``env:NAME`` or ``@FILE`` to read the URL from.
            Frames from several sources are classified in turn.
        loop: restart video files and folders when they end.
        reduced_decoding: decode JPEG images of HTTP sources and folders at 1/2, 1/4 or 1/8 of their size if the model's
            input is that much smaller. This is faster, but some labels change.
        max_frames: stop after this many predictions. None means no limit.
        threads: number of interpreter threads. 0 uses the number in the bundle. If the bundle has none, 0 selects the
            fastest number in a short benchmark or, for files, one thread per CPU, up to 4.
        delegate: a delegate's shared library, such as ``libedgetpu.so.1``, ``gpu``, or ``none`` for the CPU. None uses
            the bundle's delegate.
        fallback: use the CPU if the delegate cannot be loaded.
        threshold: minimum score. Images with a lower score get the label ``unknown``. None uses the bundle's threshold.
        output: ``window`` shows the frames, ``text`` and ``json`` print one line per frame to stdout, and ``none``
            prints nothing.
        status_file: JSON file to which the state of the camera is written about once per second; see
            :class:`~edgerec.contract.status.CameraStatus`. None writes no file.
        capture: size, rate and format to request from cameras. 0 or an empty string uses the camera's default.
        timeouts: timeouts for live sources.
        frames: which frames to classify, and how to crop and orient them.
        decision: decision settings that override the bundle's; see
            :class:`~edgerec.contract.decision.DecisionSpec`.
        delegate_options: options for the delegate, such as ``device = "usb:1"``.
        csv: settings of the CSV file. None writes no CSV file.
        video: settings of the video file. None writes no video file.
        images: settings of the saved images. None saves no images.
        mqtt: settings of the MQTT client. None does not connect to a broker.
        webhook: settings of the webhook. None sends no requests.
        metrics: settings of the Prometheus metrics. None serves no metrics.
        web: settings of the web page. None serves no web page.
        regions: named regions of the sources. Each region of a frame is classified on its own. Without regions, whole
            frames are classified.
        actions: commands and output pins that react to a change of a decision.
    """

    bundle: str | Path
    allowed_signers: str | Path | None = None
    revoked_keys: str | Path | None = None
    sources: str | Sequence[str] = field(default="0", repr=False, metadata=_SOURCE)
    loop: bool = False
    reduced_decoding: bool = False
    max_frames: int | None = None
    threads: int = 0
    delegate: str | None = field(default=None, metadata=_LIBRARY)
    fallback: bool = False
    threshold: float | None = None
    output: Output = "window"
    status_file: str | Path | None = None
    capture: CaptureFormat = field(default_factory=CaptureFormat)
    timeouts: Timeouts = field(default_factory=Timeouts)
    frames: FrameOptions = field(default_factory=FrameOptions)
    decision: Mapping[str, Any] = field(default_factory=dict, metadata={"keys": DecisionSpec})
    delegate_options: Mapping[str, str] = field(default_factory=dict)
    csv: CsvConfig | None = None
    video: VideoConfig | None = None
    images: ImageRecorderConfig | None = None
    mqtt: MqttConfig | None = None
    webhook: WebhookConfig | None = None
    metrics: MetricsConfig | None = None
    web: WebPageConfig | None = None
    regions: tuple[RegionConfig, ...] = field(default=(), metadata={"key": "region"})
    actions: tuple[ActionConfig, ...] = field(default=(), metadata={"key": "action"})

    def __post_init__(self) -> None:
        sources = (self.sources,) if isinstance(self.sources, str) else tuple(self.sources)
        object.__setattr__(self, "sources", sources)
        if not sources:
            raise ConfigError("CameraConfig.sources", "is empty; expected at least one source, such as 0 or auto")
        _check_choice("CameraConfig.output", self.output, Output)
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError("CameraConfig.max_frames", f"is {self.max_frames}; expected at least 1")
        if not 0 <= self.threads <= MAX_THREADS:
            raise ConfigError("CameraConfig.threads", f"is {self.threads}; expected 0 to {MAX_THREADS}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError("CameraConfig.threshold", f"is {self.threshold}; expected 0 to 1")
        if self.revoked_keys and not self.allowed_signers:
            raise ConfigError("CameraConfig.revoked_keys", "has no effect without allowed_signers")
        for name in ("width", "height", "fps"):
            if not 0 <= (value := getattr(self.capture, name)) < 100_000:
                raise ConfigError(f"CameraConfig.capture.{name}", f"is {value}; expected 0 to 99999")
        check_regions(self.regions, self.frames)
        if len(self.actions) > MAX_ACTIONS:
            raise ConfigError(
                "CameraConfig.actions", f"has {len(self.actions)} actions; expected at most {MAX_ACTIONS}"
            )

    @classmethod
    def from_file(cls, path: str | Path) -> CameraConfig:
        """Read a TOML configuration file, e.g. a file created with :meth:`to_toml`.

        The keys are the names of the fields. A field that contains settings, such as ``web``, is a table ``[web]``.
        Sizes in bytes may have a unit, such as ``"500MB"``. Relative paths refer to the file's folder.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or contains an unknown key or an invalid value, or other
                users can read a file that contains a password or token.
        """
        from edgerec.camera.config_reader import build, in_file, read_values

        values = read_values(cls, path)
        with in_file(path):
            return build(cls, values)

    def to_toml(self, folder: str | Path | None = None) -> str:
        """Return the configuration as TOML with a comment for each key. Use :meth:`from_file` to read the file.

        Args:
            folder: folder of the file that will contain the text. Relative paths refer to the working directory, and
                are written as absolute paths if ``folder`` is another folder. None writes all paths unchanged.

        Raises:
            ConfigError: the configuration contains a password or token instead of ``env:NAME`` or ``@FILE``.
        """
        from edgerec.camera.config_writer import to_toml

        return to_toml(self, folder)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Source URIs and the URLs of the MQTT broker and webhook."""
        return (*self.sources, *(sink.url for sink in (self.mqtt, self.webhook) if sink))

    @property
    def output_paths(self) -> tuple[str | Path, ...]:
        """Paths of all files and folders written by the sinks."""
        paths = (
            self.csv and self.csv.path,
            self.video and self.video.path,
            self.images and self.images.folder,
            self.mqtt and self.mqtt.queue_dir,
            self.web and self.web.save_dir,
            self.status_file,
        )
        return tuple(path for path in paths if path)
