"""Fetches a distribution's kernel for the guest with apt-get, and finds the modules that it needs."""

import gzip
import lzma
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evertap.lab.errors import LabError, need

# Debian's and Ubuntu's small kernels for virtual machines, then their large ones.
_PACKAGES = (
    "linux-image-cloud-amd64",
    "linux-image-virtual",
    "linux-image-amd64",
    "linux-image-generic",
)

# Ubuntu keeps the modules in a package of their own.
_WANTED = re.compile(r"^ *\|?Depends: (linux-(?:image|modules)-[0-9]\S*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: its image and the folder of its modules."""

    image: Path
    modules: Path

    @property
    def version(self) -> str:
        """As `uname -r` says it."""
        return self.modules.name

    def module_chain(self, *names: str) -> list[tuple[str, bytes]]:
        """Name and content of the modules `names` and all that they need, in the order to load them.

        What is built into the kernel is left out. Raises LabError for a module that is nowhere.
        """
        builtin = {
            _plain(Path(line).name)
            for line in (self.modules / "modules.builtin").read_text(encoding="utf-8").split()
        }
        files = {_plain(path.name): path for path in self.modules.rglob("*.ko*")}
        chain: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in chain or name in builtin:
                return
            if name not in files:
                raise LabError(f"the kernel {self.version} has no module {name!r}, and it is not built in")
            content = _uncompressed(files[name])
            for needed in _needs(content):
                add(needed)
            chain[name] = content

        for name in names:
            add(name)
        return list(chain.items())


def fetch(cache: Path, say: Callable[[str], None]) -> Kernel:
    """Return the kernel unpacked in `cache`, after downloading it if there is none.

    Nothing is installed. A kernel once fetched is kept: delete the folder to get a newer one. Raises
    LabError when apt-get is not there, or cannot download.
    """
    unpacked = cache / "kernel"
    if not unpacked.exists():
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as folder:
            fresh = Path(folder)
            _download(fresh, say)
            (fresh / "root").rename(unpacked)
    images = sorted(unpacked.glob("boot/vmlinuz-*"))
    # Newer distributions' packages bring no /lib any more, only /usr/lib.
    lists = sorted(
        path for top in ("lib", "usr/lib") for path in unpacked.glob(f"{top}/modules/*/modules.builtin")
    )
    if not images or not lists:
        raise LabError(f"no kernel with modules in {unpacked}: delete that folder and try again")
    return Kernel(images[-1], lists[-1].parent)


def _download(folder: Path, say: Callable[[str], None]) -> None:
    need("apt-get", "apt (the guest's kernel comes from a Debian or Ubuntu archive)")
    need("dpkg", "dpkg")
    known = next((name for name in _PACKAGES if _dependencies(name)), None)
    if known is None:
        raise LabError(f"apt knows none of {', '.join(_PACKAGES)}: run apt-get update")
    pending, done = _dependencies(known), set[str]()
    while pending:
        package = pending.pop()
        if package in done:
            continue
        done.add(package)
        say(f"downloading {package}")
        # apt's own user (_apt) may not write here, and apt would warn of that.
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], folder)
        pending |= _dependencies(package)
    say("unpacking the kernel")
    for archive in folder.glob("*.deb"):
        _run(["dpkg", "-x", str(archive), str(folder / "root")], folder)


def _dependencies(package: str) -> set[str]:
    """The kernel packages that `package` needs; empty as well for one that apt does not know."""
    answer = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False)
    return set(_WANTED.findall(answer.stdout))


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or done.stdout.strip()
        raise LabError(f"{' '.join(command)} failed (is apt's list old? run apt-get update): {reason}")


def _plain(file_name: str) -> str:
    return file_name.split(".")[0].replace("-", "_")


def _needs(module: bytes) -> list[str]:
    # What modinfo prints: the packages bring no modules.dep, that is made at installation.
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [_plain(name) for name in found[1].decode().split(",") if name] if found else []


def _uncompressed(path: Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".ko":
            return data
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            command = [need("zstd", "zstd"), "-d", "-c", "-q", str(path)]
            return subprocess.run(command, capture_output=True, check=True).stdout
    raise LabError(f"{path} is compressed in an unknown way")
