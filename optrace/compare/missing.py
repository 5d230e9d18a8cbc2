"""What stands for the value of an option that a side does not have: None is a value of its own."""

from __future__ import annotations


class Missing:
    """What a side that lacks an option has for its value."""

    def __repr__(self) -> str:
        return "none"


MISSING = Missing()
