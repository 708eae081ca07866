"""Immutable, content-addressed results on disk.

`identity` names a result by what it was made from, `store` keeps it whole, `record` says on what it was made.
"""

from aligngap.store.contents import Problem
from aligngap.store.disk import DiskError, disk_errors, read_json, write_bytes_atomic, write_json
from aligngap.store.identity import canonical, file_digest, folder_digest, identity
from aligngap.store.record import environment
from aligngap.store.store import Artefact, Store

__all__ = [
    "Artefact",
    "DiskError",
    "Problem",
    "Store",
    "canonical",
    "disk_errors",
    "environment",
    "file_digest",
    "folder_digest",
    "identity",
    "read_json",
    "write_bytes_atomic",
    "write_json",
]
