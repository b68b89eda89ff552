"""A correction of numba: compiled functions of records are told apart by the records' layout.

numba (0.61 to 0.68) puts a number that counts types in the process at hand into the names of compiled functions of records.
Kept on disk (``cache=True``) by two processes, functions for different records may have one name; whoever loads both runs the
first for either, which ends in wrong numbers or a crash. The layout, hashed, is the same in every process. Imported before
anything is compiled for records.
"""

from __future__ import annotations

import hashlib

from numba.core import types


def layout_number(record: types.Record) -> int:
    """A number of 60 bits that is the same for the same layout, in every process."""
    return int(hashlib.sha256(record.name.encode()).hexdigest()[:15], 16)


types.Record.mangling_args = property(lambda self: (type(self).__name__, (layout_number(self),)))  # type: ignore[assignment]
