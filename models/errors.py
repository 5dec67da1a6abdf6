"""User errors about a model, a corpus or a run; every message says what, where and what to do."""


class UserError(Exception):
    """A mistake of the user's: shown as its message alone, without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration or recipe that cannot be read or cannot work."""


class CorpusError(UserError):
    """A corpus that is missing, unreadable, or too small for what is asked of it."""


class ChangedCorpusError(CorpusError):
    """A corpus that is not the text a configuration was made for."""


class RunError(UserError):
    """A run folder or output file that is in the way, missing, or damaged."""


class DeviceError(UserError):
    """A device that this machine does not have."""
