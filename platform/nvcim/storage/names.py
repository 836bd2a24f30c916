"""Names of files and folders for ids that come from outside: users, devices, trials, adapters.

An id is any text; a name is one that every file system takes, lies in the folder it is joined to, and stands for one
id alone.
"""

import hashlib
from urllib.parse import quote

from nvcim.errors import DataError

LONGEST = 160
"""Most characters of a name: file systems take 255 bytes, of which an ending and a temporary file's marks need some."""
_DIGITS = 32


def file_name(identity: str) -> str:
    """Return the name of an id's file or folder: ASCII letters, digits, `-`, `_` and `.` stay, all else is %-encoded.

    A dot in front is encoded too, so that no name is hidden or leads out of its folder. A name that would be too long
    keeps its beginning and ends with `~` and a hash of the id.

    >>> file_name("TiN/HfO2/Ti-b4"), file_name("../escape")
    ('TiN%2FHfO2%2FTi-b4', '%2E.%2Fescape')

    Raises:
        DataError: the id is empty, or holds half a surrogate pair, which is no text.
    """
    if not identity:
        raise DataError("an id is empty; expected at least one character")
    try:
        name = quote(identity, safe="").replace("~", "%7E")
    except UnicodeEncodeError as error:
        raise DataError(f"id {identity!a} holds half a surrogate pair; expected whole characters") from error
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(identity.encode("utf-8")).hexdigest()[:_DIGITS]
    return f"{name[: LONGEST - _DIGITS - 1]}~{digest}"


def exact(value: float) -> str:
    """Return a number as the shortest text that no other number has: as `:g` where that tells it, else all digits.

    >>> exact(0.1), exact(0.0), exact(0.1234561)
    ('0.1', '0', '0.1234561')
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
