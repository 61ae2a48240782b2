"""The running virtual machine monitors: QEMU over QMP."""
