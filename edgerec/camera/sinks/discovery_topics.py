"""Remember the Home Assistant discovery topics of each source, so that entities that no longer exist can be deleted."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from edgerec.utils.atomic import read_at_most, write_file
from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.text import to_json

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
# Maximum number of topics per source. A source with the maximum number of regions needs only a fraction of them.
MAX_TOPICS = 1000


class DiscoveryTopics:
    """The discovery topics that each source has ever had, stored in a file.

    Topics remain in the file after they were deleted from the broker, because the message that deletes a topic may be
    lost. If the file cannot be read or written, the topics of earlier runs are not known.
    """

    def __init__(self, path: Path) -> None:
        """Read the file if it exists."""
        self._path = path
        self._topics: dict[str, list[str]] = {}
        try:
            self._topics = _parse(read_at_most(path, MAX_FILE_BYTES))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.debug("the file of discovery topics %s cannot be read: %s", path, error)

    def add(self, source: str, topics: Iterable[str]) -> list[str]:
        """Store a source's current topics, and return all topics that the source has ever had."""
        before = self._topics.get(source, [])
        known = list(dict.fromkeys([*topics, *before]))[:MAX_TOPICS]
        if known != before:
            self._topics[source] = known
            try:
                write_file(self._path, to_json(self._topics))
            except OSError as error:
                log.debug("the file of discovery topics %s cannot be written: %s", self._path, error)
        return known


def _parse(content: bytes) -> dict[str, list[str]]:
    values = parse_json(content)
    if not isinstance(values, dict) or not all(
        isinstance(topics, list) and all(isinstance(topic, str) for topic in topics) for topics in values.values()
    ):
        raise ValueError("expected an object whose values are lists of strings")
    return values
