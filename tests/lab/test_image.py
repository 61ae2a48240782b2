"""The guest's image is made of the right parts, once."""

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from evertap.lab import image as image_module
from evertap.lab.cpio import Cpio
from evertap.lab.errors import LabError
from evertap.lab.image import GuestImage, build
from evertap.lab.kernel import Kernel


def fake_module(*needs: str) -> bytes:
    return b"\x7fELF\0depends=" + ",".join(needs).encode() + b"\0name=x\0"


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    folder = tmp_path / "lib/modules/6.0-test"
    folder.mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/drivers/virtio/virtio-ring.ko\n", encoding="utf-8")
    (folder / "virtio_pci.ko.xz").write_bytes(lzma.compress(fake_module("virtio_ring", "virtio")))
    (folder / "virtio.ko.gz").write_bytes(gzip.compress(fake_module("virtio_ring")))
    (folder / "virtio_net.ko").write_bytes(fake_module("net-failover", "virtio"))
    (folder / "net_failover.ko").write_bytes(fake_module())
    return Kernel(tmp_path / "vmlinuz", folder)


def test_modules_come_after_what_they_need_and_without_what_is_built_in(kernel: Kernel) -> None:
    chain = kernel.module_chain("virtio_pci", "virtio_net")
    assert [name for name, _ in chain] == ["virtio", "virtio_pci", "net_failover", "virtio_net"]
    assert all(content.startswith(b"\x7fELF") for _, content in chain)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
def test_modules_compressed_with_zstd_are_read(kernel: Kernel) -> None:
    path = kernel.modules / "fuse.ko"
    path.write_bytes(fake_module())
    subprocess.run(["zstd", "-q", "--rm", str(path)], check=True)
    assert kernel.module_chain("fuse") == [("fuse", fake_module())]


def test_a_module_that_is_nowhere_is_named(kernel: Kernel) -> None:
    with pytest.raises(LabError, match=r"6\.0-test has no module 'e1000'"):
        kernel.module_chain("e1000")


def test_an_archive_has_every_folder_once_and_before_its_files() -> None:
    archive = Cpio()
    archive.file("a/b/one", b"1")
    archive.file("a/b/two", b"22", program=True)
    archive.link("a/three", "b/two")
    archive.device("dev/console", 5, 1)
    data = archive.finish()
    assert len(data) % 4 == 0
    names, position = [], 0
    while position < len(data):
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        name_start = position + 110
        names.append(data[name_start : name_start + fields[11] - 1].decode())
        body = (name_start + fields[11] + 3) // 4 * 4
        position = (body + fields[6] + 3) // 4 * 4
    assert names == ["a", "a/b", "a/b/one", "a/b/two", "a/three", "dev", "dev/console", "TRAILER!!!"]


def test_a_missing_busybox_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="apt-get install busybox-static"):
        build(tmp_path)


@pytest.mark.timeout(120)
def test_an_image_is_built_once(guest_image: GuestImage, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bytes:
        raise AssertionError("built again")

    monkeypatch.setattr(image_module, "_initramfs", never)
    assert build(guest_image.initrd.parent) == guest_image
    assert [path.name for path in guest_image.initrd.parent.glob("fetch-*")] == []
