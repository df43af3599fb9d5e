"""Publish state changes, decisions and results to an MQTT broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgerec.camera.frame import Result
from edgerec.camera.sinks.discovery_topics import DiscoveryTopics
from edgerec.camera.sinks.events import DecisionChanges, decision_event, safe_name, source_name, source_of
from edgerec.camera.sinks.homeassistant import device_id, discovery
from edgerec.camera.sinks.mqtt_client import Broker, BrokerConnection, is_topic_prefix
from edgerec.camera.sinks.mqtt_queue import MessageQueue
from edgerec.camera.source_state import StateChange
from edgerec.contract.manifest import Manifest
from edgerec.errors import EdgerecError
from edgerec.utils.text import to_json

log = logging.getLogger(__name__)

# Maximum number of messages that were sent but not yet acknowledged by the broker.
WINDOW = 16
# Maximum time in seconds for sending queued messages when the sink is closed.
FLUSH_S = 1.0
# Maximum time in seconds to publish the status "offline" and disconnect.
GOODBYE_S = 0.5
# Interval in seconds between attempts to send queued messages.
RETRY_S = 5.0


class Mqtt:
    """Publishes results and state changes to an MQTT broker.

    The topics start with ``PREFIX/``:

    ======================  ========================================================================
    ``status``              ``online``, or ``offline`` (also as the last will); retained
    ``SOURCE/state``        each state change, as JSON like ``--json``; retained, QoS 1
    ``SOURCE/decision``     each new decision, as JSON; retained, QoS 1
    ``SOURCE/result``       results, as JSON like ``--json``, if requested; QoS 0, not stored
    ======================  ========================================================================

    The topics of a named region are ``SOURCE/REGION/decision`` and ``SOURCE/REGION/result``.

    States and decisions are stored in a file until the broker has acknowledged them, so that they arrive in order after
    an outage or a restart. With QoS 1, a message may arrive twice. After each reconnection, the latest messages are
    published again because the broker may have lost its retained messages.
    """

    closed = False
    name = "mqtt"
    loss = ("message", "lost")
    uses_images = False

    def __init__(
        self,
        broker: Broker,
        folder: Path,
        manifest: Manifest,
        *,
        results_per_s: float = 0.0,
        discovery_prefix: str = "homeassistant",
        max_messages: int = 10_000,
        max_bytes: int = 10_000_000,
        sources: Sequence[str] = (),
        regions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Open the queue and start connecting to the broker in the background.

        Args:
            broker: the broker's address.
            folder: folder for the files that store the queued messages and the discovery topics.
            manifest: the bundle's manifest, which is used to announce the camera to Home Assistant.
            results_per_s: maximum number of results per second for each source or region. 0 disables results, and
                infinity publishes all of them.
            discovery_prefix: topic prefix of Home Assistant's MQTT discovery. An empty string disables discovery.
            max_messages: maximum number of queued messages. If it is exceeded, the oldest messages are dropped.
            max_bytes: maximum total size of the queued messages in bytes. If it is exceeded, the oldest are dropped.
            sources: all of the camera's sources, needed to give each one unique topics.
            regions: region names, keyed by source.

        Raises:
            EdgerecError: the folder cannot be used, another process uses it, or ``discovery_prefix`` is not valid.
            MissingExtraError: paho-mqtt is not installed.
        """
        self._broker, self._manifest, self._discovery_prefix = broker, manifest, discovery_prefix.strip("/")
        if not is_topic_prefix(self._discovery_prefix):
            raise EdgerecError(
                f"the topic prefix for discovery, {discovery_prefix!r}, is invalid: use levels such as home/hall, "
                "without the characters + # $"
            )
        self._interval_s = 1 / results_per_s if results_per_s > 0 else float("inf")
        self._next_s: dict[str, float] = {}
        self._changes = DecisionChanges()
        self._lock = threading.Lock()  # This lock protects _sources, _seen_sources and _latest.
        self._sources, self._regions = dict.fromkeys(sources), dict(regions or {})
        self._seen_sources: set[str] = set()
        self._latest: dict[str, tuple[int, bytes]] = {}
        # The attributes below are used only by the sending thread.
        self._in_flight: dict[int, int] = {}  # Queue IDs of unacknowledged messages, keyed by packet ID.
        self._resent: set[int] = set()  # Packet IDs of the messages that paho resends after reconnecting.
        self._status_ids: set[int] = set()  # Packet IDs of unacknowledged messages that were never queued.
        self._session = 0
        self._failed_s = float("-inf")
        self._announced: set[str] = set()
        self._wake, self._deadline = threading.Event(), float("inf")
        status = f"{broker.prefix}/status"
        stem = f"mqtt-{safe_name(f'{broker}/{broker.prefix}')}"
        self._queue = MessageQueue(
            folder / f"{stem}.sqlite3",
            max_messages=max_messages,
            max_bytes=max_bytes,
        )
        self._topics = DiscoveryTopics(folder / f"{stem}-discovery.json")
        try:
            self._connection = BrokerConnection(broker, will_topic=status, will="offline", changed=self._wake.set)
        except BaseException:
            self._queue.close()
            raise
        self._thread = threading.Thread(target=self._send, name="edgerec-mqtt", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._connection.connected

    @property
    def dropped(self) -> int:
        """Number of state changes and decisions lost because the queue was full, damaged or not writable."""
        return self._queue.dropped

    @property
    def missed(self) -> int:
        """Number of results not sent because the connection was lost or too slow."""
        return self._connection.missed

    @property
    def waiting(self) -> int:
        """Number of state changes and decisions not yet acknowledged by the broker."""
        return len(self._queue)

    def write(self, result: Result) -> None:
        """Publish the decision if it is new, and the result unless the rate would exceed ``results_per_s``."""
        frame, name = result.frame, source_of(result)
        source, level = frame.source or frame.origin, f"{frame.region.name}/" if frame.region else ""
        if self._changes.is_new(result):
            self._enqueue(source, f"{level}decision", decision_event(result))
        now = time.monotonic()
        if self._interval_s < float("inf") and now >= self._next_s.get(name, now):
            # Add the interval to the due time instead of the current time, so that delays do not lower the rate.
            self._next_s[name] = max(self._next_s.get(name, now) + self._interval_s, now)
            self._connection.publish_qos0(self._topic(source, f"{level}result"), _encode(result.to_dict()))

    def state(self, change: StateChange) -> None:
        """Publish a state change."""
        self._enqueue(change.source, "state", change.to_dict())

    def close(self) -> None:
        """Send queued messages for up to a second, then disconnect. Remaining messages are sent after a restart."""
        self._deadline = time.monotonic() + FLUSH_S
        self._wake.set()
        self._thread.join(FLUSH_S + 2 * GOODBYE_S)
        self._connection.close(GOODBYE_S)
        self._queue.close()
        if waiting := len(self._queue):
            log.warning("%s: %d queued messages will be sent at the next start", self._broker, waiting)
        if self.missed:
            log.warning(
                "%s: %d results were not sent, because the connection was lost or too slow", self._broker, self.missed
            )

    def _topic(self, source: str, kind: str) -> str:
        return f"{self._broker.prefix}/{source_name(source, self._sources)}/{kind}"

    def _enqueue(self, source: str, kind: str, event: dict[str, Any]) -> None:
        topic, payload = self._topic(source, kind), _encode(event)
        number = self._queue.put(topic, payload, True)
        with self._lock:
            if source not in self._sources:
                # Create a new dictionary because the sending thread may be iterating over the old one.
                self._sources = {**self._sources, source: None}
            self._seen_sources.add(source)
            self._latest[topic] = (number, payload)
        self._wake.set()

    def _send(self) -> None:
        """Run the sending thread. QoS 1 messages are sent only by this thread so that they stay in order."""
        while True:
            self._wake.wait(max(0.0, self._deadline - time.monotonic()) if self._closing else RETRY_S)
            self._wake.clear()
            try:
                self._acknowledge()
                if self._connection.connected:
                    self._publish_status()
                    self._publish_discovery()
                    self._send_queued()
            except Exception as error:  # The sending thread must stay alive for later messages.
                if time.monotonic() - self._failed_s >= 60:
                    self._failed_s = time.monotonic()
                    log.warning("%s: a message could not be sent (%s): trying again", self._broker, error)
            if self._closing and not (self._connection.connected and len(self._queue) and self._remaining_s > 0):
                break
        if self._connection.connected:
            self._publish_offline()

    @property
    def _closing(self) -> bool:
        return self._deadline < float("inf")

    @property
    def _remaining_s(self) -> float:
        return self._deadline - time.monotonic()

    def _acknowledge(self) -> None:
        while self._connection.acknowledged:
            number = self._connection.acknowledged.popleft()
            self._resent.discard(number)
            self._status_ids.discard(number)
            if (queued_id := self._in_flight.pop(number, None)) is not None:
                self._queue.remove(queued_id)

    def _publish_status(self) -> None:
        """Publish the status and each topic's latest message after every new connection."""
        if self._session == self._connection.sessions:
            return
        self._session = self._connection.sessions
        self._resent = set(self._in_flight)
        if self._status_ids:  # paho resends the unacknowledged messages.
            return
        self._announced.clear()
        self._publish_retained(f"{self._broker.prefix}/status", b"online")
        with self._lock:
            latest = dict(self._latest)
        for topic, (number, payload) in latest.items():
            if number not in self._queue:
                self._publish_retained(topic, payload)

    def _publish_discovery(self) -> None:
        with self._lock:
            new = [source for source in self._sources if source in self._seen_sources - self._announced]
            sources = list(self._sources)
        self._announced.update(new)
        if not new or not self._discovery_prefix:
            return
        prefix = self._broker.prefix
        current = {name: discovery(self._manifest, prefix, name, sources, self._regions) for name in sources}
        current_topics = {topic for messages in current.values() for topic in messages}
        for source in new:
            # The source may have had other regions, or none, in an earlier run.
            without_regions = discovery(self._manifest, prefix, source, sources)
            known = self._topics.add(source_name(source, sources), current[source])
            device = device_id(self._manifest, prefix)
            former = {topic for topic in known if device in topic.split("/")} | without_regions.keys()
            # An empty message deletes the retained message at the broker, and the entity in Home Assistant.
            payloads = dict.fromkeys(sorted(former - current_topics), b"")
            payloads |= {topic: _encode(entity) for topic, entity in current[source].items()}
            for topic, payload in payloads.items():
                self._publish_retained(f"{self._discovery_prefix}/{topic}", payload)

    def _send_queued(self) -> None:
        room = WINDOW - len(self._in_flight)
        sent = set(self._in_flight.values())
        if self._resent or room <= 0 or len(self._queue) <= sum(number in self._queue for number in sent):
            return
        for message in self._queue.pending(WINDOW):
            if message.id in sent or len(self._in_flight) >= WINDOW:
                continue
            try:
                number = self._connection.publish(message.topic, message.payload, retain=message.retain)
            except ValueError as error:  # A damaged queue file may contain invalid topics.
                log.warning("a queued message was discarded, because it cannot be sent: %s", error)
                self._queue.discard(message.id)
            else:
                self._in_flight[number] = message.id

    def _publish_offline(self) -> None:
        number, end = self._publish_retained(f"{self._broker.prefix}/status", b"offline"), time.monotonic() + GOODBYE_S
        while number in self._status_ids and self._connection.connected and (left_s := end - time.monotonic()) > 0:
            self._wake.wait(left_s)
            self._wake.clear()
            self._acknowledge()

    def _publish_retained(self, topic: str, payload: bytes) -> int:
        number = self._connection.publish(topic, payload, retain=True)
        self._status_ids.add(number)
        return number


def _encode(event: dict[str, Any]) -> bytes:
    return to_json(event).encode()
