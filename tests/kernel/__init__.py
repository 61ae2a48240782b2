"""Tests of the kernel layer, against the running kernel, in network namespaces of their own."""
