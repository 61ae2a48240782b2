"""Every error that evertap raises on purpose: what failed, where, why, and what to do."""

from __future__ import annotations


class EvertapError(Exception):
    """Base of them all. The text is written for the person who has to mend it."""


class DefinitionError(EvertapError):
    """A definition was refused, whole.

    `file` is the definition's file, `field` the path of the field in it (`uplinks[1].mode`; empty for the
    file itself), `problem` says what was found, what is allowed and what to do.
    """

    def __init__(self, file: str, field: str, problem: str) -> None:
        super().__init__(": ".join(part for part in (file, field, problem) if part))
        self.file = file
        self.field = field
        self.problem = problem


class NoSuchNicError(EvertapError):
    """There is no NIC of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'no NIC named "{name}"; `evertap list` shows those that there are')
        self.name = name


class ActionError(EvertapError):
    """The kernel (or QEMU) refused one step of what a NIC needs; it is tried again."""
