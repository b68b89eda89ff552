"""The figure that a notebook shows by itself. Imports matplotlib: whoever draws imports this then, and not before."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.figure import Figure

PIXELS_PER_INCH = 80
"""Of a figure on a page; twice as many are drawn, for screens that have them."""


class ShownFigure(Figure):
    """A figure that is shown once where it is the last value of a notebook's cell.

    pyplot does not know it: nothing has to be closed, and no backend shows it a second time.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """What Jupyter asks for: the picture, and its size on the page."""
        from decentral.analysis.plots import STYLE

        file = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(file, format="png", dpi=2 * PIXELS_PER_INCH, metadata={"Software": None})
        width, height = (round(PIXELS_PER_INCH * inches) for inches in self.get_size_inches())
        return file.getvalue(), {"width": width, "height": height}
