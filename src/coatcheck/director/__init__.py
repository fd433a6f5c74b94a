"""The local director: sends each request to the web server that hosts its session (mission B1)."""

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.options import DirectorOptions, WebServer

__all__ = ["DirectorOptions", "EmbeddedDirector", "WebServer"]
