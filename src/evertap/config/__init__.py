"""Definitions on disk: reading, checking, writing and watching nics.d, and the running state's few files."""
