"""User errors about a study, its storage or its workers; every message says what, where and what to do."""

from models.errors import UserError


class StorageError(UserError):
    """A database that cannot be started, reached, or used."""

    exit_code = 3


class StudyError(UserError):
    """A study that is unknown, changed, or has nothing to give yet."""


class WorkerError(UserError):
    """A worker that cannot work here, or workers that all ended."""

    exit_code = 4


class LostDeviceError(UserError):
    """A GPU on which a process can do nothing any more, though another process may."""

    exit_code = 5


class ServerConfigError(UserError):
    """Users, keys, certificates or addresses with which the dashboard cannot be opened."""
