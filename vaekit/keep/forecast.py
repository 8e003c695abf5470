"""When a long training run will end, whether that fits into the session, and what to change."""

from datetime import datetime, timedelta
from math import inf

from vaekit.config import Config
from vaekit.place.setup import KAGGLE_WEEK, host


def is_due(cfg: Config, row: dict, shown: int) -> bool:
    """After two epochs of this call (the first is slower), and again in phase 2, which has its own
    speed."""
    early = shown == 2 or row["epoch"] == cfg.epochs_phase1 + 2
    return early and row["epoch"] < cfg.num_epochs


def forecast(cfg: Config, row: dict, left: float, now: datetime) -> str:
    """A sentence or two: the end of the run at the pace of the epoch in `row`.

    left: seconds left for training in this session, infinite without a limit.
    """
    pace = row["seconds"]
    epochs = cfg.num_epochs - row["epoch"]
    ahead = epochs * pace
    end = now + timedelta(seconds=ahead)
    text = f"{pace:.0f} s an epoch: {epochs} more end {end:%a %H:%M}, in {in_hours(ahead)}"
    if left == inf:
        return text
    if ahead <= left:
        return f"{text}, within the {in_hours(left)} that are left"
    stops = row["epoch"] + max(0, int(left / pace))
    share = max(0.0, left) / (cfg.num_epochs * pace)
    shorter = [f"{name}={max(1, int(share * before))}" for name, before in phases(cfg).items()]
    text += (
        f", later than the {in_hours(left)} that are left. It stops after about epoch {stops},"
        " saved, and the same call goes on in the next session. To begin anew and end in this"
        f" one: {', '.join(shorter)}; or image_size={cfg.image_size // 2}, about a quarter of the"
        " time"
    )
    if host() == "kaggle" and cfg.num_epochs * pace > 3600 * KAGGLE_WEEK:
        text += f". All of it takes more than the {KAGGLE_WEEK} GPU hours of a week"
    return text


def phases(cfg: Config) -> dict[str, int]:
    """{Config field: length} of the phases that are not empty."""
    both = {"epochs_phase1": cfg.epochs_phase1, "epochs_phase2": cfg.epochs_phase2}
    return {name: epochs for name, epochs in both.items() if epochs}


def in_hours(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(0, seconds) / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
