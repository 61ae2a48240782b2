"""Builds the guest: a distribution's kernel, and an initramfs of busybox, a few modules and iperf3."""

import fcntl
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evertap.lab import cpio, kernel
from evertap.lab.errors import LabError, need

_INIT = Path(__file__).with_name("guest-init.sh")
_SOURCES = (Path(__file__), Path(cpio.__file__), Path(kernel.__file__), _INIT)
_MODULES = ("virtio_pci", "virtio_net")


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What QEMU's -kernel and -initrd want."""

    kernel: Path
    initrd: Path


def _quiet(_: str) -> None:
    return


def build(cache: Path, say: Callable[[str], None] = _quiet) -> GuestImage:
    """Return the guest's image, made and kept in the folder `cache`; `say` is told of the long steps.

    The first time needs the distribution's package archive, all later ones need nothing. Several
    processes may build at once. Raises LabError, which names the package that is missing.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busybox = _static_busybox()
        iperf3 = shutil.which("iperf3")
        found = kernel.fetch(cache.resolve(), say)
        initrd = cache.resolve() / f"initrd-{_key(found, busybox, iperf3)}"
        if not initrd.exists():
            say("building the guest's initramfs")
            content = _initramfs(found, busybox, iperf3)
            with tempfile.NamedTemporaryFile(dir=cache, prefix="initrd-", delete=False) as fresh:
                fresh.write(content)
            # QEMU may run as another user, as libvirt's does.
            Path(fresh.name).chmod(0o644)
            Path(fresh.name).rename(initrd)
            _forget_older(cache, initrd)
        return GuestImage(found.image, initrd)


def _key(found: kernel.Kernel, busybox: Path, iperf3: str | None) -> str:
    """A text that changes with anything that the initramfs is made of."""
    digest = hashlib.sha256(found.version.encode())
    for source in _SOURCES:
        digest.update(source.read_bytes())
    for program in (busybox, *([Path(iperf3)] if iperf3 else [])):
        state = program.stat()
        digest.update(f"{program} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _static_busybox() -> Path:
    path = Path(need("busybox", "busybox-static")).resolve()
    # A dynamic program names its loader.
    if b"/ld-linux" in path.read_bytes():
        raise LabError(f"{path} is not static: apt-get install busybox-static")
    return path


def _initramfs(found: kernel.Kernel, busybox: Path, iperf3: str | None) -> bytes:
    archive = cpio.Cpio()
    for folder in ("proc", "sys", "dev", "tmp", "run"):
        archive.folder(folder)
    # The kernel opens it for init before devtmpfs is mounted.
    archive.device("dev/console", 5, 1)
    archive.file("init", _INIT.read_bytes(), program=True)
    archive.file("bin/busybox", busybox.read_bytes(), program=True)
    chain = found.module_chain(*_MODULES)
    for name, content in chain:
        archive.file(f"modules/{name}.ko", content)
    archive.file("modules/order", "".join(f"{name}.ko\n" for name, _ in chain).encode())
    if iperf3:
        archive.file("bin/iperf3", Path(iperf3).read_bytes(), program=True)
        for library in _libraries(iperf3):
            archive.file(library.lstrip("/"), Path(library).read_bytes(), program=True)
    return archive.finish()


def _libraries(program: str) -> list[str]:
    """The paths at which a program looks for its loader and its shared libraries."""
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return re.findall(r"(?:=> |^\s)(/\S+) \(", listing, re.MULTILINE)


def _forget_older(cache: Path, current: Path) -> None:
    # A day's grace, for a guest that is being started from it.
    newest = current.stat().st_mtime
    for path in cache.glob("initrd-*"):
        if path.stat().st_mtime < newest - 86400:
            path.unlink()
