"""Synthetic frontal chest X-rays, so that everything runs with no data set attached.

A film is a sum of attenuations: soft tissue and air as smooth fields, bones and vessels as tubes in
three dimensions projected from the front, then scatter, film curve, grain, collimation and marker.
Lengths are in units of half the widest inner width of the rib cage: u points to the image's right
(the patient's left), v down from the lung apices, z to the front. No real film went into it.

    python -m vaekit.lessons.phantom data/chest_xray_phantom      # redraws the bundled images
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

PNEUMONIA = (None, "bacteria", "virus")
ANATOMY = {  # ranges, one uniform value a patient
    "age": (0.0, 1.0), "habitus": (0.0, 1.0),  # infant to school child, thin to stout
    "cage": (1.5, 2.3), "bend": (-0.05, 0.05),  # how soon the ribs widen; curve of the spine
    "heart": (0.85, 1.2), "apex": (0.75, 0.95),  # its size; height of its tip, share of the lung
    "thymus": (0.0, 0.1), "knob": (0.03, 0.1),  # upper mediastinum, aortic knob: extra half width
    "rib_drop": (3.0, 4.8), "rib_radius": (0.2, 0.28),  # back to front, in rib gaps
    "bone": (0.8, 1.4), "vessels": (0.7, 1.5),  # density of the ribs, width of the vessels
    "dome": (0.22, 0.42), "tilt": (-0.01, 0.12), "bubble": (0.0, 1.0),  # left lower; stomach gas
}  # fmt: skip
TECHNIQUE = {  # ranges, one uniform value a film
    "breath": (-0.12, 0.1), "turn": (-0.18, 0.18), "lean": (-0.08, 0.08),  # lowers the domes; tilts
    "above": (0.05, 0.68), "below": (0.25, 0.6),  # field beyond the apices and the right dome
    "side": (1.1, 1.6), "shift": (-0.1, 0.1),  # half the field's width, its offset
    "chin": (0.05, 0.8), "arm": (-1.2, 1.5),  # height above the apices; -1.2 raised, 1.5 hanging
    "exposure": (1.05, 1.35), "gamma": (0.72, 1.1), "scatter": (0.0, 0.3),  # haze, a share
    "boost": (0.3, 1.05), "blur": (0.3, 0.55), "noise": (0.5, 2.0),  # edges; pixels; grey levels
    "black": (-0.02, 0.08), "white": (0.76, 1.02),  # film fog and the densest grey, of 255
    "border": (-1.8, 1.0),  # above 0: collimation shows
}  # fmt: skip


def draw_film(
    patient: int, film: int = 0, pneumonia: str | None = None, height: int = 256, seed: int = 0
) -> np.ndarray:
    """One film, uint8 (height, W) in 0..255; W follows from the film's own field, 0.8 to 2.5:1.

    Anatomy depends on (seed, patient), technique on `film` too; `pneumonia` is None, "bacteria"
    (one lobe) or "virus" (patchy, both sides). ValueError for any other, or a negative number."""
    if pneumonia not in PNEUMONIA:
        raise ValueError(f"pneumonia={pneumonia!r}: choose one of {PNEUMONIA}")
    s = _scene(patient, film, height, seed)
    x = _tissue(s) + _lungs(s, pneumonia) + _spine(s) + _ribs(s) + _pairs(s)
    return _finish(s, _expose(s, x * (1 + 0.025 * _texture(s, _rng(*s.key, 8), 3))))


def draw_lungs(patient: int, film: int = 0, height: int = 256, seed: int = 0) -> np.ndarray:
    """Where that film has air deeper than 0.35, before any pneumonia: bool (height, W)."""
    return _air(_scene(patient, film, height, seed)) > 0.35


def _rng(*key: int) -> np.random.Generator:
    """A stream of its own for each key; keys begin with (seed, patient, number of the stream)."""
    return np.random.default_rng(np.random.SeedSequence(key))


def _pick(table: dict, rng: np.random.Generator) -> dict:
    return {name: rng.uniform(*span) for name, span in table.items()}


def _scene(patient: int, film: int, height: int, seed: int) -> SimpleNamespace:
    """All measures of a film, and its pixels' u and v (H, W); `to_px` maps (u, v) to pixels."""
    s = SimpleNamespace(key=(seed, patient), film=film, **_pick(ANATOMY, _rng(seed, patient, 0)))
    first, again = (_pick(TECHNIQUE, _rng(seed, patient, 1, k)) for k in (0, film))
    # a second film is taken much as the first was
    vars(s).update({k: 0.6 * first[k] + 0.4 * again[k] for k in TECHNIQUE})
    s.lung = 1.0 + 0.42 * s.age + 0.1 * (2.0 - s.cage)  # from the apices to the right dome
    s.base, s.rib_gap, s.wall = s.lung + s.breath, s.lung / 8.6, 0.07 + 0.13 * s.habitus
    s.upper = 0.13 + 0.8 * s.thymus * (1.5 - s.age)  # half width of the upper mediastinum
    s.scale = height / (s.above + s.lung + s.below)  # pixels a unit
    s.shape, mid = (height, round(2 * s.side * s.scale)), (s.lung + s.below - s.above) / 2
    c, d = s.scale * np.cos(s.lean), s.scale * np.sin(s.lean)
    s.to_px = np.array(
        [[c, -d, s.shape[1] / 2 + d * mid + s.shift * s.scale], [d, c, height / 2 - c * mid]]
    )
    a = cv2.invertAffineTransform(s.to_px).astype(np.float32)
    y, x = np.mgrid[:height, : s.shape[1]].astype(np.float32)
    u, v = (row[0] * x + row[1] * y + row[2] for row in a)
    ripple = 0.012 * _texture(s, _rng(*s.key, 2), 2.5)  # no outline is quite smooth
    s.u, s.v = u - np.float32(s.bend) * (v - 0.6) ** 2 + ripple, v + ripple
    return s


def _curve(v: np.ndarray, *knots: tuple[float, float]) -> np.ndarray:
    """Smooth curve through (v, value) knots: a table, blurred, then looked up."""
    fine = np.linspace(knots[0][0], knots[-1][0], 128)
    table = cv2.GaussianBlur(np.interp(fine, *np.array(knots).T)[None], (0, 0), 5)[0]
    return np.interp(v, fine, table).astype(np.float32)


def _step(x: np.ndarray, width: float) -> np.ndarray:
    """0 below zero, 1 above, smooth over `width`."""
    return 0.5 + 0.5 * np.tanh(x / width)


def _ball(s: SimpleNamespace, centre, axes) -> np.ndarray:
    """Chord through an ellipsoid: 1 at its centre, 0 outside."""
    u, v = (s.u - centre[0]) / axes[0], (s.v - centre[1]) / axes[1]
    return np.sqrt(np.maximum(1 - u**2 - v**2, 0))


def _texture(s: SimpleNamespace, rng: np.random.Generator, cells: float) -> np.ndarray:
    """Smooth noise fixed to the patient: `cells` bumps a unit, standard deviation about 1."""
    grid = 1.4 * rng.standard_normal((int(5 * cells) + 4,) * 2, dtype=np.float32)
    to_grid = cells * (cv2.invertAffineTransform(s.to_px) + [[0, 0, 2.5], [0, 0, 1.2]])
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grid, to_grid, s.shape[::-1], None, how, cv2.BORDER_REFLECT)


def _tubes(s: SimpleNamespace, lines, radius, density, shell: float = 0.0) -> np.ndarray:
    """Attenuation of tubes along `lines` (n, points, 3): points of their sections, splatted.

    Where a tube runs towards the viewer its points pile up: that is what makes the side of the
    rib cage bright. `shell` is the share of the density that sits in the wall."""
    u, v, z = np.moveaxis(np.asarray(lines, dtype=np.float64), -1, 0)  # each (n, points)
    radius, density = np.broadcast_to(radius, u.shape), np.broadcast_to(density, u.shape)
    flat = np.stack([u + s.bend * (v - 0.6) ** 2 + s.turn * z, v, np.ones_like(u)], -1)
    xy = flat @ s.to_px.T  # (n, points, 2)
    dx, dy = np.moveaxis(np.gradient(xy, axis=1), -1, 0)
    dz = s.scale * np.gradient(z, axis=1)
    across = np.stack([-dy * np.sign(dx), np.abs(dx) + np.abs(dz)], -1)  # upright seen end on
    across /= np.linalg.norm(across, axis=-1, keepdims=True) + 1e-6
    count = max(4, int(np.max(radius) * s.scale * 2.2)) | 1
    theta = (np.arange(count) + 0.5) * np.pi / count
    offset = s.scale * radius[..., None] * np.cos(theta)  # (n, points, count)
    profile = (shell + 2 * (1 - shell) * np.sin(theta) ** 2) / count
    weight = np.sqrt(dx**2 + dy**2 + dz**2) * density * np.pi * radius**2 * s.scale
    section = xy[..., None, :] + offset[..., None] * across[..., None, :]
    return _splat(section, weight[..., None] * profile, s.shape)


def _splat(xy: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Add each weight (...) to the four pixels around its point (..., 2)."""
    h, w = shape[0] + 2, shape[1] + 2  # a rim takes what falls outside
    x, y = (np.clip(xy[..., i].ravel() + 1, 0, (w, h)[i] - 1.001) for i in (0, 1))
    col, row = x.astype(np.int64), y.astype(np.int64)
    x, y, at, weight = x - col, y - row, row * w + col, weight.ravel()
    low, high = weight * (1 - y), weight * y
    parts = ((0, low * (1 - x)), (1, low * x), (w, high * (1 - x)), (w + 1, high * x))
    image = sum(np.bincount(at + skip, part, h * w) for skip, part in parts)
    return image.reshape(h, w)[1:-1, 1:-1].astype(np.float32)


def _tissue(s: SimpleNamespace) -> np.ndarray:
    """Trunk, neck, head and arms."""
    v, h, wall, up = s.v, s.lung, s.wall, np.clip(0.3 - s.arm, 0, 1)
    width = _curve(v, (-1.3, 0.5), (-0.5, 0.42), (-0.35, 0.45 + 0.3 * up), (-0.16, 0.75 + 0.2 * up),
                   (0.05, 1 + wall), (0.3, 1.05 + wall), (0.6 * h, 1 + wall),
                   (h + 1, 1.03 + wall))  # fmt: skip
    depth = _curve(v, (-1.3, 0.7), (-0.45, 0.55), (-0.1, 0.55), (0.15, 0.62), (0.5, 0.86),
                   (0.8 * h, 0.96), (h + 1, 1.1))  # fmt: skip
    plump = _curve(v, (-1.3, 0.5), (-0.3, 0.8), (0.2, 1.2), (0.7 * h, 0.7), (h + 1, 0.5))
    trunk = depth * np.maximum(1 - (s.u / width) ** 2, 0) ** plump
    out, down, c, d = np.abs(s.u) - 0.98, v - 0.08, np.cos(s.arm), np.sin(s.arm)
    along = np.clip(out * c + down * d, 0, 1.6)
    gap = (out - along * c) ** 2 + (down - along * d) ** 2
    arms = 1.2 * np.sqrt(np.maximum((0.17 + 0.5 * wall) ** 2 - gap, 0))
    stomach = s.bubble**2 * _ball(s, (0.5, s.base + s.tilt + 0.25), (0.3, 0.17))  # gas in it
    head = _ball(s, (s.turn, -s.chin - 0.55), (0.55, 0.55))
    return np.maximum(trunk, arms) + 0.6 * head - 0.22 * stomach


def _half_width(s: SimpleNamespace, v: np.ndarray) -> np.ndarray:
    """Inner half width of the rib cage at height v."""
    return np.maximum(1 - (1 - np.clip(v / (1.15 * s.lung), 0, 1)) ** s.cage, 1e-4) ** 0.5


def _heart(s: SimpleNamespace) -> np.ndarray:
    """Depth of heart and great vessels, between their right and left borders."""
    v, h, wide, u = s.v, s.base, s.upper, s.u - 0.25 * s.turn
    r = s.heart * (1.08 - 0.16 * s.age)
    top = (-1.3, 0.4), (-0.05, 0.33), (0.04 * h, 0.25), (0.15 * h, wide)
    right = _curve(v, *top, (0.45 * h, wide + 0.02), (0.7 * h, 0.33 * r), (0.9 * h, 0.36 * r),
                   (h + 0.1, 0.25), (h + 1, 0.2))  # fmt: skip
    left = _curve(v, *top, (0.27 * h, wide + s.knob), (0.4 * h, wide + 0.03), (0.55 * h, 0.32 * r),
                  (s.apex * h, 0.6 * r), (h + 0.12, 0.6 * r), (h + 0.4, 0.3),
                  (h + 1, 0.3))  # fmt: skip
    depth = _curve(v, (-1.3, 0.8), (0.1 * h, 0.7), (0.5 * h, 0.62), (0.8 * h, 0.66), (h + 1, 0.7))
    body = np.maximum(1 - (u / np.where(u < 0, right, left)) ** 2, 0) ** 0.4
    return np.maximum(depth * body, np.exp(-((u / 0.13) ** 2)))


def _air(s: SimpleNamespace) -> np.ndarray:
    """Depth of air in the lungs: the cage, less the heart, above the diaphragm."""
    half, x = _half_width(s, s.v), np.abs(s.u) - 0.45
    air = half**0.9 * np.maximum(1 - (s.u / half) ** 2, 0) ** 0.4
    dome = s.base + np.where(s.u < 0, 0, s.tilt) + s.dome * np.where(x > 0, x / 0.5, x / 0.9) ** 2
    behind = 0.25 * np.exp(-np.maximum(s.v - dome, 0) / 0.2)  # lung that reaches down behind it
    return np.maximum(air - _heart(s), 0) * (behind + (1 - behind) * _step(dome - s.v, 0.015))


def _lungs(s: SimpleNamespace, pneumonia: str | None) -> np.ndarray:
    """Air taken away; vessels, fine mottle and opacities in it."""
    air, rng = _air(s), _rng(*s.key, 3)
    mottle = 0.012 * (_texture(s, rng, 14) + _texture(s, rng, 30))
    share, seen = _opacity(s, pneumonia) if pneumonia else (0, 1)
    return (_vessels(s) * seen + mottle) * np.minimum(air / 0.25, 1) - 0.76 * air * (1 - share)


def _opacity(s: SimpleNamespace, pneumonia: str) -> tuple[np.ndarray, np.ndarray]:
    """Share of the air replaced, 0 to 1, and how well vessels show against it."""
    rng, u, v, h = _rng(*s.key, 4), s.u, s.v, s.base
    if pneumonia == "virus":  # patches around both hila
        patches = 0.75 + 0.35 * _texture(s, rng, 2.5) + 0.2 * _texture(s, rng, 6)
        central = np.exp(-(((np.abs(u) - 0.3) / 0.45) ** 2) - ((v / h - 0.6) / 0.45) ** 2)
        share = np.clip(rng.uniform(0.35, 0.65) * central * patches, 0, 0.9)
        return share, 1 + 0.4 * share
    out, upper = u * rng.choice([-1, 1]), rng.random() < 0.4  # one lobe, up to its fissure
    fissure = (0.52 + rng.uniform(-0.12, 0.12)) * h - rng.uniform(-0.1, 0.4) * (out - 0.5)
    beyond = (fissure - v if upper else v - fissure) / h
    x, y = (out - rng.uniform(0.35, 0.6)) / rng.uniform(0.3, 0.5), beyond - rng.uniform(0.1, 0.25)
    cloud = np.exp(-(x**2) - (y / 0.3) ** 2)
    cloud += 0.14 * _texture(s, rng, 4) + 0.06 * _texture(s, rng, 10)
    share = _step(cloud - 0.4, 0.3) * _step(beyond, rng.uniform(0.02, 0.1)) * _step(out, 0.05)
    return rng.uniform(0.5, 0.9) * share, 1 - 1.4 * share  # below 0: bronchi stand out as air


def _vessels(s: SimpleNamespace) -> np.ndarray:
    """Trees that fan out from the hila: 24 stems, each forking twice, two times over."""
    rng, points, n = _rng(*s.key, 5), s.shape[0] // 4, 24
    t, side, radius, x = np.linspace(0, 1, points), np.tile([-1.0, 1.0], 12), 0.024 * s.vessels, 0
    angle, length = np.linspace(-1.5, 1.6, n) + rng.normal(0, 0.15, n), rng.uniform(0.45, 0.85, n)
    root = np.stack([rng.uniform(0.12, 0.28, n), 0.47 * s.base + 0.16 * np.sin(angle)], 1)
    for _ in range(3):
        wind = rng.normal(0, (0.6, 0.25), (n, 2))
        way = angle[:, None] + wind[:, :1] * t + wind[:, 1:] * np.sin(5 * t)
        step = np.stack([np.cos(way), np.sin(way)], -1) * (length / points)[:, None, None]
        line = np.cumsum(step, 1) + root[:, None]  # (n, points, 2), as if all on one side
        lines = np.stack([line[..., 0] * side[:, None], line[..., 1], 0 * way], -1)
        x = x + _tubes(s, lines, radius * (1 - 0.6 * t), 1.1)
        fork = (rng.uniform(0.2, 0.9, (n, 2)) * points).astype(int)
        root = line[np.arange(n)[:, None], fork].reshape(-1, 2)
        angle = np.repeat(angle, 2) + rng.normal(0, 0.15, 2 * n) + rng.choice([-0.6, 0.6], 2 * n)
        side, length, radius, n = np.repeat(side, 2), np.repeat(length, 2) / 2, 0.62 * radius, 2 * n
    return 0.12 * np.tanh(x / 0.12)


def _ribs(s: SimpleNamespace) -> np.ndarray:
    """Eleven pairs on the cage, from the spine back, round the side and down to the front."""
    number, side = np.repeat(np.arange(11), 2)[:, None], np.tile([-1.0, 1.0], 11)[:, None]
    last = 2.45 - 0.22 * np.maximum(number - 6, 0)  # the lower ribs end at the side
    phi = 0.1 + (last - 0.1) * np.linspace(0, 1, s.shape[0])  # angle around the cage, 0 at the back
    fall = s.rib_drop * (0.55 + 0.08 * number) * (1 - np.cos(phi)) / 2 - 0.4 * np.sin(phi) ** 2
    v = s.rib_gap * (number - 0.1 + 0.25 * s.breath * number + fall)
    half = _half_width(s, v + 0.4 * s.rib_gap) + 0.02
    lines = np.stack([side * (0.1 + (half - 0.1) * np.sin(phi)), v, -0.75 * half * np.cos(phi)], -1)
    front = _step(phi - 1.9, 0.3)  # wider and fainter there
    density = s.bone * (1 - 0.45 * front) * np.minimum(1.9 - 0.12 * number, 1)
    x = _tubes(s, lines, s.rib_radius * s.rib_gap * (1 + 0.2 * front), density, 0.8)
    return 0.25 * np.tanh(x / 0.25)  # where many overlap, the beam is spent


def _pairs(s: SimpleNamespace) -> np.ndarray:
    """Clavicles, humeri, shoulder blades' edges, jaw; trachea and bronchi as missing tissue."""
    t, o, fork = np.linspace(0, 1, s.shape[0]), np.zeros(s.shape[0]), 0.4 * s.base
    rise, c, d = 0.24 * np.clip(-s.arm, 0, 1) + 0.1, 1.3 * np.cos(s.arm), 1.3 * np.sin(s.arm)
    knob = np.sqrt(np.clip(t / 0.03, 0.01, 1)) * (0.05 + 0.03 * np.exp(-(((t - 0.03) / 0.06) ** 2)))
    tubes = [  # one side's: u, v, z, radius, density
        (0.12 + 0.85 * t, 0.16 - rise * t - 0.04 * np.sin(5.5 * t), (1 - t) / 2, o + 0.026, o + 2),
        (1.04 + c * t, 0.1 + d * t, o, knob, o + 1.3),
        (1.02 - 0.05 * t - 0.1 * t**2, 0.16 + 0.5 * t, o - 0.5, 0.03 - 0.015 * t, o + 1),
        (0.86 + 0.14 * t, 0.06 + 0.1 * t**2, o - 0.4, 0.025 + 0.03 * t, o + 0.8),
        (0.44 * np.cos(1.6 * t), 0.44 * np.sin(1.6 * t) - s.chin - 0.5, o + 1, o + 0.04, o + 1.2),
        (0.004 * t, (fork + 0.7) * t - 0.7, o + 0.1, o + 0.05, o - 0.4),
        (0.24 * t, fork + 0.2 * t**0.8, o + 0.1, o + 0.035, o - 0.8),
    ]
    u, v, z, radius, density = np.moveaxis(np.array(tubes), 1, 0)
    return sum(_tubes(s, np.stack([side * u, v, z], -1), radius, density, 0.6) for side in (-1, 1))


def _spine(s: SimpleNamespace) -> np.ndarray:
    """Vertebral bodies with discs between them, pedicles and spinous processes."""
    u, phase, width = s.u + 0.6 * s.turn, (s.v / s.rib_gap) % 1, 0.1 + 0.02 * np.clip(s.v, -1, 1.5)
    block = _step(phase - 0.12, 0.06) * _step(0.9 - phase, 0.06)
    pedicles = np.exp(-(((np.abs(u) - 0.6 * width) / 0.022) ** 2) - ((phase - 0.4) / 0.16) ** 2)
    process = np.exp(-((u / 0.02) ** 2) - ((phase - 0.75) / 0.2) ** 2)
    return _step(width - np.abs(u), 0.03) * (0.04 + 0.07 * block) + 0.05 * (pedicles + process)


def _expose(s: SimpleNamespace, x: np.ndarray) -> np.ndarray:
    """Attenuation to grey levels, float: blur, edge enhancement, scatter, film curve, grain."""
    px = s.shape[0] / 256
    x = cv2.GaussianBlur(x.astype(np.float32), (0, 0), s.blur * px)
    haze = cv2.blur(cv2.resize(x, (64, 64), interpolation=cv2.INTER_AREA), (15, 15))
    edges, haze = x - cv2.GaussianBlur(x, (0, 0), 5 * px), cv2.resize(haze, s.shape[::-1])
    x = (1 - s.scatter) * x + s.scatter * haze + s.boost * edges
    x = np.maximum(s.exposure * x, 0) ** s.gamma
    grey = 255 * (s.black + (s.white - s.black) * np.tanh(1.25 * x))
    grain = _rng(*s.key, 9, s.film).standard_normal(s.shape, dtype=np.float32)
    return grey + 2 * s.noise * cv2.GaussianBlur(grain, (0, 0), 0.7) * np.clip(grey / 80, 0, 1)


def _finish(s: SimpleNamespace, grey: np.ndarray) -> np.ndarray:
    """Collimation on some sides, the burnt-in marker; uint8."""
    rng, (h, w), px = _rng(*s.key, 10, s.film), s.shape, s.shape[0] / 256
    top, low, left, right = (np.maximum(rng.uniform(-0.08, 0.06, 4), 0) * (h, h, w, w)).astype(int)
    if s.border > 0:
        field = np.pad(np.ones((h - top - low, w - left - right)), ((top, low), (left, right)))
        grey = grey * cv2.GaussianBlur(field, (0, 0), px)
    film = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
    y = rng.choice([-0.1, 0.08, 0.08, 0.25, 0.5, 0.5])  # now and then beyond the film
    at, size = (int(rng.uniform(0.01, 0.08) * w), int(y * h)), rng.uniform(0.35, 0.6) * px
    cv2.putText(film, "R", at, cv2.FONT_HERSHEY_SIMPLEX, size, 245, max(1, round(px)), cv2.LINE_AA)
    return film


SHARES = {  # of all films
    ("train", "NORMAL"): 0.295, ("train", "PNEUMONIA"): 0.445,
    ("val", "NORMAL"): 0.02, ("val", "PNEUMONIA"): 0.02,
    ("test", "NORMAL"): 0.09, ("test", "PNEUMONIA"): 0.13,
}  # fmt: skip
# Numbers of train patients who have a film in another folder too, as happens in Kermany's set.
GUESTS = {("val", "NORMAL"): [1], ("val", "PNEUMONIA"): [1, 5], ("test", "PNEUMONIA"): [9]}


def _file_name(label: str, number: int, film: int, serial: int) -> tuple[str, str | None]:
    """Kermany's file name, and the kind of pneumonia it tells."""
    if label == "NORMAL":
        stem = f"NORMAL2-IM-{1001 + number}" if number % 5 > 2 else f"IM-{115 + number:04d}"
        return stem + "-0001" + (f"-{film + 1:04d}" if film else "") + ".jpeg", None
    kind, person = "virus" if number % 3 == 2 else "bacteria", 1 + number - (number + 3) // 6
    return f"person{person}_{kind}_{serial}.jpeg", kind  # some persons are two, one of each kind


def _plan(films: int):
    """Yield (split, label, number, film); every fourth patient has two or three films."""
    following = {"NORMAL": 0, "PNEUMONIA": 0}
    for (split, label), share in SHARES.items():
        room = round(share * films)
        chosen = [(number, 3) for number in GUESTS.get((split, label), [])][:room]
        while len(chosen) < room:
            number, following[label] = following[label], following[label] + 1
            count = 1 + (number % 4 == 1) + (number % 12 == 5)
            chosen += [(number, film) for film in range(min(count, room - len(chosen)))]
        yield from ((split, label, number, film) for number, film in chosen)


def write_bundle(folder: str | Path, seed: int = 1, films: int = 400) -> int:
    """Write about `films` JPEGs, 256 px high, in Kermany's layout; returns their number.

    `folder`/{train,val,test}/{NORMAL,PNEUMONIA}/; files of the same name are overwritten. OSError
    where the disk refuses. Patients of the two classes differ, whatever their numbers."""
    plan = list(_plan(films))
    for serial, (split, label, number, film) in enumerate(plan, 1):
        name, kind = _file_name(label, number, film, serial)
        path = Path(folder) / split / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = draw_film(number + 10_000 * (label == "PNEUMONIA"), film, kind, seed=seed)
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 88]):
            raise OSError(f"cannot write {path}")
    return len(plan)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the bundled synthetic chest X-rays.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{write_bundle(args.folder, args.seed)} films in {args.folder}")
