"""Limits the rate of wrong logins: a few at once, then one at a time."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

MOST_KEPT = 10_000
"""Addresses and users that are remembered; the one that has been quiet for longest is forgotten."""


@dataclass(frozen=True)
class Limit:
    """`at_once` wrong logins at once, and one more each `seconds`."""

    at_once: float
    seconds: float


OF_USER = Limit(5, 30)
"""For one user from one address: 2,885 guesses a day."""

OF_ADDRESS = Limit(30, 5)
"""For all users together from one address."""


class RateLimiter:
    """Who may try to log in, and who has to wait. Only wrong logins count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most_kept: int = MOST_KEPT) -> None:
        self.clock, self.most_kept = clock, most_kept
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # what is left of a limit, and when
        self._lock = threading.Lock()

    def take(self, address: str, name: str) -> float:
        """Takes an attempt before the password is looked at, lest many be at once; returns seconds to wait, or 0."""
        with self._lock:
            left = {key: (self._now_left(key, limit), limit) for key, limit in _limits(address, name)}
            wait = max((1 - now) * limit.seconds for now, limit in left.values())
            if wait > 0:
                return wait
            for key, (now, _) in left.items():
                self._keep(key, now - 1)
            return 0.0

    def give_back(self, address: str, name: str) -> None:
        """Gives an attempt back: the login was right."""
        with self._lock:
            for key, limit in _limits(address, name):
                self._keep(key, min(self._now_left(key, limit) + 1, limit.at_once))

    def __len__(self) -> int:
        return len(self._left)

    def _now_left(self, key: Hashable, limit: Limit) -> float:
        left, since = self._left.get(key, (limit.at_once, self.clock()))
        return min(left + (self.clock() - since) / limit.seconds, limit.at_once)

    def _keep(self, key: Hashable, left: float) -> None:
        self._left[key] = (left, self.clock())
        self._left.move_to_end(key)
        if len(self._left) > self.most_kept:
            self._left.popitem(last=False)


def _limits(address: str, name: str) -> Iterator[tuple[Hashable, Limit]]:
    network = _network(address)
    yield network, OF_ADDRESS
    yield (network, name[:64]), OF_USER


def _network(address: str) -> str:
    """An IPv6 address without its second half, of which one machine has as many as it likes."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4 or (mapped := parsed.ipv4_mapped) is not None:
        return str(parsed if parsed.version == 4 else mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
