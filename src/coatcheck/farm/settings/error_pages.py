"""The operator's error pages, from a directory."""

from __future__ import annotations

from pathlib import Path

from coatcheck.error_pages import MAX_PAGE_BYTES, MAX_PAGES, ErrorPages
from coatcheck.errors import ConfigError


def load_error_pages(directory: str) -> ErrorPages:
    """The pages of a directory; without one, the built-in ones. Files that begin with a dot are left alone.

    Raises:
        ConfigError: the directory or a page cannot be read, or a name means nothing.
    """
    if not directory:
        return ErrorPages()
    pages: dict[str, bytes] = {}
    try:
        for path in sorted(Path(directory).iterdir()):
            if path.name.startswith("."):
                continue
            if len(pages) >= MAX_PAGES or not path.is_file():
                raise ConfigError(f"error_pages: {directory} holds more than pages: {path.name!r}; give it a directory")
            with path.open("rb") as file:
                pages[path.name] = file.read(MAX_PAGE_BYTES + 1)
    except OSError as error:
        where = error.filename or directory
        raise ConfigError(f"error_pages: {where}: {error.strerror}; name a readable directory") from None
    return ErrorPages(pages)
