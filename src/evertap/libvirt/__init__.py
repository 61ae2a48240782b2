"""libvirt's domains, by libvirt's own binding; that is optional: ask `available` before importing more."""


def available() -> bool:
    """Whether libvirt-python is installed (pip install evertap[libvirt])."""
    try:
        import libvirt  # noqa: F401
        import libvirt_qemu  # noqa: F401
    except ImportError:
        return False
    return True
