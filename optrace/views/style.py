"""Whether and how text is coloured: NO_COLOR and FORCE_COLOR first, then whether anybody looks."""

from __future__ import annotations

import os
from typing import TextIO


class Style:
    """Puts ANSI escapes around text, or leaves it as it is."""

    def __init__(self, color: bool) -> None:
        self.color = color

    def good(self, text: str) -> str:
        """For what is well."""
        return self._paint(text, "32")

    def bad(self, text: str) -> str:
        """For what is not."""
        return self._paint(text, "31")

    def strong(self, text: str) -> str:
        """For what matters in its line."""
        return self._paint(text, "1")

    def label(self, text: str) -> str:
        """For what names other text."""
        return self._paint(text, "2")

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text.strip() else text


def wants_color(stream: TextIO) -> bool:
    """NO_COLOR (not empty) says no, FORCE_COLOR (not empty) yes; else a terminal that is not `dumb` gets colours."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
