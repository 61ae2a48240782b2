"""Writes a cpio archive (newc, the format of an initramfs) in memory; see the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst."""

from pathlib import PurePosixPath

_FOLDER = 0o040755
_FILE = 0o100644
_PROGRAM = 0o100755
_LINK = 0o120777
_DEVICE = 0o020600


class Cpio:
    """An archive in the making; folders come into being with what lies in them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def folder(self, path: str) -> None:
        """Add a folder, and those above it; no matter if it is there."""
        if path not in self._names:
            self._add(path, _FOLDER, b"")

    def file(self, path: str, data: bytes, program: bool = False) -> None:
        """Add a file, with the right to run it if it is a program."""
        self._add(path, _PROGRAM if program else _FILE, data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, _LINK, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(path, _DEVICE, b"", (major, minor))

    def finish(self) -> bytes:
        """Return the whole archive."""
        trailer = _entry(0, "TRAILER!!!", 0, b"", (0, 0))
        return b"".join([*self._parts, trailer])

    def _add(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        parent = str(PurePosixPath(path).parent)
        if parent != ".":
            self.folder(parent)
        self._names.add(path)
        self._parts.append(_entry(len(self._names), path, mode, data, device))


def _entry(inode: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device's major and minor, rdev's, name's length, check
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
