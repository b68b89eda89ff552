"""Progress bars, the same in a terminal and in a notebook."""

from __future__ import annotations

import os
import warnings
from typing import Any


def bar(**arguments: Any) -> Any:
    """A tqdm bar with tqdm's arguments: a widget in a notebook, or characters where ipywidgets is not installed.

    None with ``TQDM_DISABLE`` in the environment, which tqdm itself does not heed in notebooks.
    """
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # "install ipywidgets": characters do as well
        from tqdm.auto import tqdm
    return tqdm(**arguments, disable=bool(os.environ.get("TQDM_DISABLE")))
