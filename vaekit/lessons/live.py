"""A training's curves, redrawn as it goes."""

import sys

from vaekit.place.progress import watched
from vaekit.plots import plot_history


class LiveHistory:
    """A hook for `fit(on_epoch_end=...)`: `plot_history`, redrawn in place about 20 times a run.

    Only in a notebook that somebody watches (see `progress.watched`); silent everywhere else.
    """

    def __init__(self):
        self.handle = None

    def __call__(self, run) -> None:
        every = max(1, run.cfg.num_epochs // 20)
        ipython = sys.modules.get("IPython")
        if not ipython or not ipython.get_ipython() or not watched() or len(run.history) % every:
            return
        figure = plot_history(run.history)
        if self.handle is None:
            self.handle = ipython.display.display(figure, display_id=True)
        else:
            self.handle.update(figure)
