"""MQTT broker addresses, and broker connections that reconnect automatically."""

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
from edgerec.utils.secret_references import read_secret, secret_variable
from edgerec.utils.url_redaction import Url

log = logging.getLogger(__name__)

PASSWORD = "EDGEREC_MQTT_PASSWORD"
KEEPALIVE_S = 30
CONNECT_S = 5.0
# Initial and maximum delay between connection attempts in seconds.
RETRY_S = (1, 2)
# Delay in seconds before reconnecting if the broker rejected the user name or password.
REJECTED_S = 60
# paho's reason codes for "bad user name or password" and "not authorized" in all MQTT versions.
_CREDENTIAL_ERRORS = (134, 135)
# Maximum number of QoS 0 messages waiting for a slow network. Further messages are dropped.
MAX_UNSENT = 32
# Maximum size in bytes of a packet from the broker, which sends only small acknowledgments.
MAX_PACKET_BYTES = 1024

_USAGE = (
    "use mqtt[s]://user:password@host:port/prefix "
    f"(in a password, write / : @ # ? as %2F %3A %40 %23 %3F, or set {PASSWORD})"
)


@dataclass(frozen=True)
class Broker:
    """An MQTT broker's address, credentials and topic prefix.

    Attributes:
        host, port: the broker's host and port.
        tls: whether to encrypt the connection and to check the broker's certificate.
        user, password: credentials, or empty strings if the broker needs none.
        prefix: first levels of every topic.
    """

    host: str
    port: int = 1883
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    prefix: str = "edgerec"

    def __str__(self) -> str:
        """Return the address without user name, password and prefix, for logging."""
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] | None = None) -> Broker:
        """Parse ``mqtt[s]://user:password@host:port/prefix``. User, password, port and prefix are optional.

        ``env:NAME`` and ``@FILE`` read the address from an environment variable or from a file with mode 0600. The
        password may also be in the environment variable ``EDGEREC_MQTT_PASSWORD``, or in the file whose path is in
        ``EDGEREC_MQTT_PASSWORD_FILE``. The default prefix is ``edgerec/HOSTNAME`` so that the cameras of two machines
        publish to different topics.

        Raises:
            EdgerecError: the address is not valid. The message does not contain the address.
        """
        try:
            parts = Url.parse(read_secret(url, environment), "mqtt", "mqtts")
        except AddressError as error:
            raise EdgerecError(f"the broker's address is invalid ({error}): {_USAGE}") from None
        if parts.query or "#" in parts.raw:
            raise EdgerecError(f"the broker's address must not have a query or a fragment: {_USAGE}")
        user = parts.user
        password = parts.password or secret_variable(PASSWORD, environment)
        if password and not user:
            raise EdgerecError(f"a password for the broker requires a user name: {_USAGE}")
        prefix = unquote(parts.path).strip("/") or f"edgerec/{safe_name(socket.gethostname())}"
        if not is_topic_prefix(prefix):
            raise EdgerecError(
                "the topic prefix in the broker's address is invalid: use levels such as home/hall, without the "
                "characters + # $"
            )
        return cls(parts.host, parts.port, parts.scheme == "mqtts", user, password, prefix)


def is_topic_prefix(text: str) -> bool:
    """Return True if ``text`` is a valid MQTT topic prefix. An empty string is valid."""
    return not re.search(r"[+#\x00-\x1f\x7f\ud800-\udfff]|//|^\$", text) and len(text.encode(errors="replace")) <= 200


class BrokerConnection:
    """A broker connection that reconnects automatically in paho's network thread.

    All methods may be called from any thread.

    Attributes:
        connected: whether the broker has accepted the connection.
        sessions: number of connections accepted by the broker.
        acknowledged: packet IDs of QoS 1 messages acknowledged by the broker. The caller removes them from the left.
        missed: number of QoS 0 messages that were not sent.
    """

    def __init__(self, broker: Broker, *, will_topic: str, will: str, changed: Callable[[], None]) -> None:
        """Start connecting in the background.

        Args:
            broker: the broker's address.
            will_topic: topic of the last will. The broker publishes it as a retained message if the connection is lost.
            will: payload of the last will.
            changed: function called in the network thread after an attribute has changed.

        Raises:
            MissingExtraError: paho-mqtt is not installed.
        """
        self.connected, self.sessions, self.missed = False, 0, 0
        self.acknowledged: deque[int] = deque()
        self._broker, self._changed = broker, changed
        self._unsent: deque[Any] = deque()
        self._closing, self._ended = threading.Event(), threading.Event()
        self._problem, self._was_logged = "", False
        self._logged_s: dict[str, float] = {}
        self._client = client = _client(self._network)
        if broker.user:
            client.username_pw_set(broker.user, broker.password or None)
        if broker.tls:
            client.tls_set_context(ssl.create_default_context())
        client.will_set(will_topic, will, qos=1, retain=True)
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(0)  # 0 disables paho's limit, because the MQTT sink has its own limit.
        client.reconnect_delay_set(*RETRY_S)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_publish = self._on_connect_fail, self._on_publish
        client.connect_async(broker.host, broker.port, KEEPALIVE_S)
        client.loop_start()

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int:
        """Send a message with QoS 1 and return its packet ID, which is later added to :attr:`acknowledged`.

        If the connection is lost before the acknowledgment, paho resends the messages in the same order after the
        reconnection.
        """
        return int(self._client.publish(topic, payload, qos=1, retain=retain).mid)

    def publish_qos0(self, topic: str, payload: bytes) -> None:
        """Send a message with QoS 0. If it cannot be sent promptly, drop it and count it in :attr:`missed`."""
        while self._unsent and _is_finished(self._unsent[0]):
            self.missed += self._unsent.popleft().rc > 0
        if not self.connected or len(self._unsent) >= MAX_UNSENT:
            self.missed += 1
        else:
            self._unsent.append(self._client.publish(topic, payload, qos=0))

    def close(self, seconds: float) -> None:
        """Disconnect, and wait at most ``seconds`` for the network thread."""
        self._closing.set()
        self._client.disconnect()
        self._ended.wait(seconds)

    def _network(self, loop: Callable[[], Any]) -> None:
        """Run paho's network loop in the network thread, restarting it if it fails."""
        while not self._closing.is_set():
            try:
                loop()
            except Exception as error:  # paho does not validate the lengths in packets.
                log.debug("%s", self._broker, exc_info=error)
                self._lost(f"sent data that is not valid MQTT ({type(error).__name__}): trying to reconnect")
            if not self._closing.wait(RETRY_S[1]):
                self._client.connect_async(self._broker.host, self._broker.port, KEEPALIVE_S)
        self._ended.set()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._closing.is_set():
            client.disconnect()
        elif reason.is_failure and reason.value in _CREDENTIAL_ERRORS:
            client.reconnect_delay_set(REJECTED_S, REJECTED_S)
            client_text = f"user {self._broker.user!r}" if self._broker.user else "a client without user name"
            self._warn(
                f"rejected {client_text} ({str(reason).lower()}): check user name and password; trying again every "
                f"{REJECTED_S} s"
            )
        elif reason.is_failure:
            self._warn(f"rejected the connection ({str(reason).lower()}): trying again")
        else:
            client.reconnect_delay_set(*RETRY_S)
            log.log(logging.WARNING if self._was_logged else logging.INFO, "%s is connected", self._broker)
            self._problem, self._was_logged = "", False
            self.sessions += 1
            self.connected = True
            self._changed()

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        # paho calls this method in an except block without passing the exception.
        self._lost(f"cannot be reached ({sys.exc_info()[1]}): trying again")

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not self._closing.is_set() and not self._problem:
            self._lost(f"is disconnected ({str(reason).lower()}): trying to reconnect")
        self.connected = False
        self._changed()

    def _on_publish(self, client: Any, userdata: Any, number: int, reason: Any, properties: Any) -> None:
        self.acknowledged.append(number)
        self._changed()

    def _lost(self, problem: str) -> None:
        self.connected = False
        self._warn(problem)
        self._changed()

    def _warn(self, problem: str) -> None:
        """Log each kind of problem once per outage, and at most once per minute."""
        kind, now = problem.partition("(")[0], time.monotonic()
        if self._closing.is_set() or kind == self._problem:
            return
        self._problem = kind
        if now - self._logged_s.get(kind, -60.0) >= 60:
            self._logged_s[kind], self._was_logged = now, True
            log.warning("%s %s", self._broker, problem)


def _is_finished(message: Any) -> bool:
    """Return False if a message is still waiting to be sent."""
    try:
        return bool(message.is_published())
    except (RuntimeError, ValueError):  # paho raises these errors if the message was lost.
        return True


def _client(run: Callable[[Callable[[], Any]], None]) -> Any:
    """Create a paho client whose network thread calls ``run(loop)``, where ``loop`` is paho's own network loop.

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
                raise ValueError(
                    f"the broker sent a packet of {bufsize} bytes, but at most {MAX_PACKET_BYTES} bytes are allowed"
                )
            return super()._sock_recv(bufsize)

        def _packet_handle(self) -> Any:
            kind = self._in_packet["command"] & 0xF0
            if kind not in (mqtt.CONNACK, mqtt.PUBACK, mqtt.PINGRESP) or (kind == mqtt.CONNACK and self.is_connected()):
                raise ValueError(f"the broker sent an unexpected packet of type {kind >> 4}")
            return super()._packet_handle()

    # Every broker must accept client IDs of up to 23 characters.
    name = f"edgerec{secrets.token_hex(8)}"
    return Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311)
