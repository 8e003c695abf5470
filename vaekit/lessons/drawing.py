"""Boxes and arrows, for diagrams of networks."""

from matplotlib.text import Text

from vaekit.plots import panels


def canvas(title: str = "", width: float = 10.0, height: float = 2.4):
    """The axis of an empty drawing whose coordinates are inches; show it with `axis.figure`."""
    _, ((axis,),) = panels(1, 1, (width, height))
    axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axis.set_axis_off()
    axis.set_title(title, fontsize=12)
    return axis


def box(axis, x, y, text: str, colour: str = "0.55", size: float = 11, here: bool = False) -> Text:
    """A word in a frame, with its centre at (x, y); size: points; here: filled, the present place
    on a map."""
    frame = dict(boxstyle="round,pad=0.5", fc="#f8d9bd" if here else "white", ec=colour, lw=1.6)
    return axis.text(x, y, text, ha="center", va="center", fontsize=size, bbox=frame)


def arrow(axis, start, end, colour: str = "black", style: str = "-") -> None:
    """From one point (x, y) to another, or from box to box, frame to frame."""
    line = dict(arrowstyle="-|>", color=colour, lw=1.6, linestyle=style)
    if isinstance(start, Text):
        line |= dict(patchA=start.get_bbox_patch(), patchB=end.get_bbox_patch())
        start = start.get_position()
        end = end.get_position()
    axis.annotate("", end, start, arrowprops=line)
