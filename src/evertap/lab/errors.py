"""What can go wrong in the laboratory, and the search for programs that it needs."""

import shutil


class LabError(Exception):
    """The laboratory could not do what was asked; the message says what failed and how to mend it."""


def need(program: str, package: str) -> str:
    """Return the full path of `program`; raise LabError naming the Debian `package` that brings it."""
    found = shutil.which(program)
    if found is None:
        raise LabError(f"{program} is not installed: apt-get install {package}")
    return found
