"""What a user can do wrong. Every message is one line that names the file, field or id and what is allowed.

The command line prints the message and exits with status 2; HTTP endpoints answer 4xx with it.
"""


class NvcimError(Exception):
    """Base of all errors that a user's input can cause."""


class ConfigError(NvcimError):
    """A setting that does not exist, has the wrong type, or is out of range."""


class DeviceError(NvcimError):
    """A device that the catalogue does not hold, or a catalogue entry that makes no sense."""


class DataError(NvcimError):
    """A data file that is missing, truncated, or breaks its format."""


class ModelError(NvcimError):
    """A model file or name that cannot serve as what it was given for."""


class RunError(NvcimError):
    """A run folder that is missing or incomplete, or a cluster or port that cannot be used."""
