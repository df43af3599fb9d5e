"""An MQTT broker's address, and a connection to it that is made again whenever it is lost."""

from __future__ import annotations

import logging
import re
import secrets
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from edgerec.camera.sinks.events import safe_name
from edgerec.errors import AddressError, EdgerecError
from edgerec.utils.optional import require
from edgerec.utils.secrets import read_secret, secret_variable
from edgerec.utils.urls import Url

log = logging.getLogger(__name__)

PASSWORD = "EDGEREC_MQTT_PASSWORD"
KEEPALIVE_S = 30
CONNECT_S = 5.0
# Pauses between attempts, the first and the longest; a broker that refuses us is not asked that often.
RETRY_S = (1, 2)
REFUSED_S = 60
# "Bad user name or password" and "not authorized", as paho numbers them for all versions of MQTT.
_CREDENTIALS = (134, 135)
# Results that may wait for a slow network; more are left out.
MAX_LOOSE = 32
# Maximum size of a packet from the broker. Acknowledgments, the only packets that edgerec expects, have 4 bytes.
MAX_PACKET_BYTES = 1024

_EXPECTED = (
    "expected mqtt[s]://user:password@host:port/prefix "
    f"(in a password, write / : @ # ? as %2F %3A %40 %23 %3F, or set {PASSWORD})"
)


@dataclass(frozen=True)
class Broker:
    """Where to publish.

    Attributes:
        host, port: of the broker.
        tls: whether the connection is encrypted and the broker's certificate checked.
        user, password: empty for none.
        prefix: the first levels of every topic.
    """

    host: str
    port: int = 1883
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    prefix: str = "edgerec"

    def __str__(self) -> str:
        """As it may be shown and logged."""
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] | None = None) -> Broker:
        """Parse ``mqtt[s]://user:password@host:port/prefix``; user, password, port and prefix are optional.

        ``env:NAME`` or ``@FILE`` names an environment variable or a file with mode 0600 that contains the address. The
        password may also be in the environment variable ``EDGEREC_MQTT_PASSWORD``, or in the file that
        ``EDGEREC_MQTT_PASSWORD_FILE`` names. The default prefix is ``edgerec/`` and the name of this machine, so that
        the cameras of two machines publish to different topics.

        Raises:
            EdgerecError: the address is not valid. The message contains no part of it.
        """
        try:
            parts = Url.parse(read_secret(url, environment), "mqtt", "mqtts")
        except AddressError as error:
            raise EdgerecError(f"the broker's address cannot be used: {error}; {_EXPECTED}") from None
        if parts.query or "#" in parts.raw:
            raise EdgerecError(f"the broker's address is not understood: {_EXPECTED}")
        user = parts.user
        password = parts.password or secret_variable(PASSWORD, environment)
        if password and not user:
            raise EdgerecError(f"the broker's address has a password and no user: {_EXPECTED}")
        prefix = unquote(parts.path).strip("/") or f"edgerec/{safe_name(socket.gethostname())}"
        if not is_topic_prefix(prefix):
            raise EdgerecError(
                "the topic prefix in the broker's address cannot be used: expected levels as home/hall, without + # $"
            )
        return cls(parts.host, parts.port, parts.scheme == "mqtts", user, password, prefix)


def is_topic_prefix(text: str) -> bool:
    """Return whether ``text`` is valid as the first part of an MQTT topic name. An empty string is valid."""
    return not re.search(r"[+#\x00-\x1f\x7f\ud800-\udfff]|//|^\$", text) and len(text.encode(errors="replace")) <= 200


class Connection:
    """Keeps a connection to a broker by paho's network thread. All methods may be called from any thread.

    Attributes:
        connected: whether the broker has accepted us.
        sessions: how often it did.
        acknowledged: numbers of messages of QoS 1 that it has taken, to be popped from the left.
        missed: messages of QoS 0 that were not sent.
    """

    def __init__(self, broker: Broker, *, will_topic: str, will: str, changed: Callable[[], None]) -> None:
        """Begin to connect, in the background.

        Args:
            broker: where.
            will_topic, will: what the broker publishes, retained, when we vanish.
            changed: called, in the network thread, when an attribute has changed.

        Raises:
            MissingExtraError: paho-mqtt is not installed.
        """
        self.connected, self.sessions, self.missed = False, 0, 0
        self.acknowledged: deque[int] = deque()
        self._broker, self._changed = broker, changed
        self._loose: deque[Any] = deque()
        self._closing, self._ended = threading.Event(), threading.Event()
        self._trouble, self._aloud = "", False
        self._said_s: dict[str, float] = {}
        self._client = client = _client(self._network)
        if broker.user:
            client.username_pw_set(broker.user, broker.password or None)
        if broker.tls:
            client.tls_set_context(ssl.create_default_context())
        client.will_set(will_topic, will, qos=1, retain=True)
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(0)  # who calls counts
        client.reconnect_delay_set(*RETRY_S)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_publish = self._on_connect_fail, self._on_publish
        client.connect_async(broker.host, broker.port, KEEPALIVE_S)
        client.loop_start()

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int:
        """Send with QoS 1; the number that :attr:`acknowledged` will have. What is not acknowledged when the
        connection is lost is sent again by itself, in its order, when there is another."""
        return int(self._client.publish(topic, payload, qos=1, retain=retain).mid)

    def publish_loose(self, topic: str, payload: bytes) -> None:
        """Send with QoS 0 if that can be done soon; otherwise count it."""
        while self._loose and _settled(self._loose[0]):
            self.missed += self._loose.popleft().rc > 0
        if not self.connected or len(self._loose) >= MAX_LOOSE:
            self.missed += 1
        else:
            self._loose.append(self._client.publish(topic, payload, qos=0))

    def close(self, seconds: float) -> None:
        """Say good-bye and wait so long for the network thread; one that hangs ends with the process."""
        self._closing.set()
        self._client.disconnect()
        self._ended.wait(seconds)

    def _network(self, loop: Callable[[], Any]) -> None:
        """Paho's thread: whatever a broker sends, the camera goes on."""
        while not self._closing.is_set():
            try:
                loop()
            except Exception as error:  # paho trusts that lengths in packets are right
                log.debug("%s", self._broker, exc_info=error)
                self._lost(f"sends what is not MQTT ({type(error).__name__}); trying again until it does")
            if not self._closing.wait(RETRY_S[1]):
                self._client.connect_async(self._broker.host, self._broker.port, KEEPALIVE_S)
        self._ended.set()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._closing.is_set():
            client.disconnect()
        elif reason.is_failure and reason.value in _CREDENTIALS:
            client.reconnect_delay_set(REFUSED_S, REFUSED_S)
            who = f"user {self._broker.user!r}" if self._broker.user else "a client without user and password"
            why = str(reason).lower()
            self._say(f"refuses {who} ({why}): check user and password; asking again every {REFUSED_S} s")
        elif reason.is_failure:
            self._say(f"does not take us ({str(reason).lower()}); trying again until it does")
        else:
            client.reconnect_delay_set(*RETRY_S)
            log.log(logging.WARNING if self._aloud else logging.INFO, "%s is connected", self._broker)
            self._trouble, self._aloud = "", False
            self.sessions += 1
            self.connected = True
            self._changed()

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        # Called while paho handles the error, which it does not hand over.
        self._lost(f"cannot be reached ({sys.exc_info()[1]}); trying again until it can")

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not self._closing.is_set() and not self._trouble:
            self._lost(f"is gone ({str(reason).lower()}); trying again until it is back")
        self.connected = False
        self._changed()

    def _on_publish(self, client: Any, userdata: Any, number: int, reason: Any, properties: Any) -> None:
        self.acknowledged.append(number)
        self._changed()

    def _lost(self, why: str) -> None:
        self.connected = False
        self._say(why)
        self._changed()

    def _say(self, trouble: str) -> None:
        """Once for each outage and kind of trouble, and once a minute when they come and go: a broker that is down
        for a month is one line."""
        kind, now = trouble.partition("(")[0], time.monotonic()
        if self._closing.is_set() or kind == self._trouble:
            return
        self._trouble = kind
        if now - self._said_s.get(kind, -60.0) >= 60:
            self._said_s[kind], self._aloud = now, True
            log.warning("%s %s", self._broker, trouble)


def _settled(message: Any) -> bool:
    """Whether a message was sent, or never will be."""
    try:
        return bool(message.is_published())
    except (RuntimeError, ValueError):  # so paho tells of one that was lost with its connection
        return True


def _client(run: Callable[[Callable[[], Any]], None]) -> Any:
    """Create a paho client. Its network thread calls ``run(loop)``, where ``loop`` is paho's own network loop.

    The client accepts only the packets that a broker sends to a client without subscriptions, because paho would store
    other packets, e.g. messages of QoS 2, in memory without a limit. An unexpected packet raises an exception, which
    ends the connection.
    """
    mqtt = require("paho.mqtt.client")

    class Client(mqtt.Client):  # type: ignore[misc, name-defined]
        def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> Any:
            run(lambda: super(Client, self).loop_forever(timeout, retry_first_connection))

        def _sock_recv(self, bufsize: int) -> Any:
            if bufsize > MAX_PACKET_BYTES:
                raise ValueError(f"a packet of {bufsize} bytes")
            return super()._sock_recv(bufsize)

        def _packet_handle(self) -> Any:
            kind = self._in_packet["command"] & 0xF0
            if kind not in (mqtt.CONNACK, mqtt.PUBACK, mqtt.PINGRESP) or (kind == mqtt.CONNACK and self.is_connected()):
                raise ValueError(f"an unexpected packet of type {kind >> 4}")
            return super()._packet_handle()

    # A random client ID of 23 characters, the maximum length that every broker must accept.
    name = f"edgerec{secrets.token_hex(8)}"
    return Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311)
