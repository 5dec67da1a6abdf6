"""Tells an outage of the database from an error in a request."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout


def is_outage(error: BaseException | None) -> bool:
    """Whether an error says that the database cannot be reached, rather than that it was asked something wrong."""
    while error is not None:
        if isinstance(error, OperationalError | PoolTimeout):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False
