"""Synthetic frontal chest X-rays, so that everything runs without a data set.

A film is a sum of attenuations: soft tissue and air as smooth fields, bones and vessels as tubes in
three dimensions, projected from the front; then scatter, film curve, grain, collimation and marker.
Lengths are in units of half the widest inner width of the rib cage: u points to the image's right
(the patient's left), v down from the lung apices, z to the front. No real film was used.

    python -m vaekit.files.phantom data/chest_xray_phantom      # redraws the committed sample
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np

from vaekit.place.progress import watched

Array = np.ndarray
HEIGHT = 256  # pixels of a film
ANATOMY = {  # ranges, one uniform value a patient
    "age": (0.0, 1.0),  # infant to school child
    "habitus": (0.0, 1.0),  # thin to stout
    "cage": (1.5, 2.3),  # how soon the ribs widen
    "bend": (-0.05, 0.05),  # of the spine
    "heart": (0.85, 1.2),  # its size
    "apex": (0.75, 0.95),  # height of its tip, share of the lung
    "thymus": (0.0, 0.1),  # extra half width of the upper mediastinum
    "knob": (0.03, 0.1),  # the same of the aortic knob
    "rib_drop": (3.0, 4.8),  # back to front, in rib gaps
    "rib_radius": (0.2, 0.28),  # in rib gaps
    "bone": (0.8, 1.4),  # density of the ribs
    "vessels": (0.7, 1.5),  # their width
    "dome": (0.22, 0.42),  # of the diaphragm
    "tilt": (-0.01, 0.12),  # how much lower its left half is
    "bubble": (0.0, 1.0),  # stomach gas
}
TECHNIQUE = {  # ranges, one uniform value a film
    "breath": (-0.12, 0.1),  # lowers the domes
    "turn": (-0.18, 0.18),
    "lean": (-0.08, 0.08),
    "above": (0.05, 0.68),  # field beyond the apices
    "below": (0.25, 0.6),  # field beyond the right dome
    "side": (1.1, 1.6),  # half the field's width
    "shift": (-0.1, 0.1),  # its offset
    "chin": (0.05, 0.8),  # height above the apices
    "arm": (-1.2, 1.5),  # from raised to hanging
    "exposure": (1.05, 1.35),
    "gamma": (0.72, 1.1),
    "scatter": (0.0, 0.3),  # haze, a share
    "boost": (0.3, 1.05),  # of edges
    "blur": (0.3, 0.55),  # pixels
    "noise": (0.5, 2.0),  # grey levels
    "black": (-0.02, 0.08),  # film fog, of 255
    "white": (0.76, 1.02),  # the densest grey, of 255
    "border": (-1.8, 1.0),  # above 0: collimation shows
}


def draw_film(patient: int, film: int = 0, pneumonia: str | None = None, seed: int = 0) -> Array:
    """One film, uint8 (HEIGHT, W) in 0..255; W follows from the film's own field, 0.8 to 2.5:1.

    Anatomy depends on (seed, patient), technique on `film` too; `pneumonia` is None, "bacteria"
    (one lobe) or "virus" (patchy, both sides). ValueError for any other, or a negative number."""
    if pneumonia not in OPACITY:
        raise ValueError(f"pneumonia={pneumonia!r}: choose one of {tuple(OPACITY)}")
    s = _scene(patient, film, seed)
    x = _tissue(s) + _lungs(s, pneumonia) + _spine(s) + _ribs(s) + _pairs(s)
    uneven = 1 + 0.025 * _texture(s, s.rng(8), 3)
    return _finish(s, _expose(s, x * uneven))


class Scene(SimpleNamespace):
    """All measures of a film, and its pixels' u and v (H, W); `to_px` maps (u, v) to pixels."""

    def rng(self, *stream: int) -> np.random.Generator:
        """Random numbers of their own for each patient and `stream`."""
        return np.random.default_rng([*self.key, *stream])

    def pick(self, table: dict, *stream: int) -> dict:
        rng = self.rng(*stream)
        return {name: rng.uniform(*span) for name, span in table.items()}


def _scene(patient: int, film: int, seed: int) -> Scene:
    s = Scene(key=(seed, patient), film=film)
    first, again = (s.pick(TECHNIQUE, 1, k) for k in (0, film))
    # a second film is taken much as the first was
    technique = {name: 0.6 * first[name] + 0.4 * again[name] for name in TECHNIQUE}
    vars(s).update(s.pick(ANATOMY, 0) | technique)
    s.lung = 1.0 + 0.42 * s.age + 0.1 * (2.0 - s.cage)  # from the apices to the right dome
    s.base = s.lung + s.breath
    s.rib_gap = s.lung / 8.6
    s.wall = 0.07 + 0.13 * s.habitus
    s.upper = 0.13 + 0.8 * s.thymus * (1.5 - s.age)  # half width of the upper mediastinum

    s.scale = HEIGHT / (s.above + s.lung + s.below)  # pixels a unit
    s.shape = (HEIGHT, round(2 * s.side * s.scale))
    middle = (s.lung + s.below - s.above) / 2
    c = s.scale * np.cos(s.lean)
    d = s.scale * np.sin(s.lean)
    right = s.shape[1] / 2 + d * middle + s.shift * s.scale
    s.to_px = np.array([[c, -d, right], [d, c, HEIGHT / 2 - c * middle]])
    to_u, to_v = cv2.invertAffineTransform(s.to_px).astype(np.float32)
    y, x = np.mgrid[:HEIGHT, : s.shape[1]].astype(np.float32)
    ripple = 0.012 * _texture(s, s.rng(2), 2.5)  # no outline is perfectly smooth
    u = to_u[0] * x + to_u[1] * y + to_u[2]
    v = to_v[0] * x + to_v[1] * y + to_v[2]
    s.u = u - np.float32(s.bend) * (v - 0.6) ** 2 + ripple
    s.v = v + ripple
    return s


def _curve(v: Array, at: list[float], values: list[float]) -> Array:
    """Smooth curve through `values` at heights `at`: a table, blurred, then looked up."""
    fine = np.linspace(at[0], at[-1], 128)
    table = cv2.GaussianBlur(np.interp(fine, at, values)[None], (0, 0), 5)[0]
    return np.interp(v, fine, table).astype(np.float32)


def _step(x: Array, width: float) -> Array:
    """0 below zero, 1 above, smooth over `width`."""
    return 0.5 + 0.5 * np.tanh(x / width)


def _bump(x: Array, y: Array | float = 0.0) -> Array:
    """1 where x and y are zero, 0 far away."""
    return np.exp(-(x**2) - y**2)


def _ball(s: Scene, centre: tuple, axes: tuple) -> Array:
    """Chord through an ellipsoid: 1 at its centre, 0 outside."""
    u = (s.u - centre[0]) / axes[0]
    v = (s.v - centre[1]) / axes[1]
    return np.sqrt(np.maximum(1 - u**2 - v**2, 0))


def _texture(s: Scene, rng: np.random.Generator, cells: float) -> Array:
    """Smooth noise fixed to the patient: `cells` bumps a unit, standard deviation about 1."""
    side = int(5 * cells) + 4
    grid = 1.4 * rng.standard_normal((side, side), dtype=np.float32)
    to_grid = cells * (cv2.invertAffineTransform(s.to_px) + [[0, 0, 2.5], [0, 0, 1.2]])
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grid, to_grid, s.shape[::-1], None, how, cv2.BORDER_REFLECT)


def _tubes(s: Scene, lines, radius, density, shell: float = 0.0) -> Array:
    """Attenuation of tubes along `lines` (n, points, 3): points of their sections, splatted.

    Where a tube runs towards the viewer its points pile up: this makes the sides of the rib cage
    bright. `shell` is the share of the density that lies in the wall."""
    u, v, z = lines[..., 0], lines[..., 1], lines[..., 2]  # (n, points)
    radius = np.broadcast_to(radius, u.shape)
    density = np.broadcast_to(density, u.shape)
    seen = u + s.bend * (v - 0.6) ** 2 + s.turn * z
    xy = np.stack([seen, v, np.ones_like(u)], -1) @ s.to_px.T  # (n, points, 2)
    slope = np.gradient(xy, axis=1)
    dx, dy = slope[..., 0], slope[..., 1]
    dz = s.scale * np.gradient(z, axis=1)
    across = np.stack([-dy * np.sign(dx), np.abs(dx) + np.abs(dz)], -1)  # upright seen end on
    across /= np.linalg.norm(across, axis=-1, keepdims=True) + 1e-6

    count = max(4, int(np.max(radius) * s.scale * 2.2)) | 1
    theta = (np.arange(count) + 0.5) * np.pi / count
    offset = s.scale * radius[..., None] * np.cos(theta)  # (n, points, count)
    profile = (shell + 2 * (1 - shell) * np.sin(theta) ** 2) / count
    length = np.sqrt(dx**2 + dy**2 + dz**2)
    weight = length * density * np.pi * radius**2 * s.scale
    section = xy[..., None, :] + offset[..., None] * across[..., None, :]
    return _splat(section, weight[..., None] * profile, s.shape)


def _splat(xy: Array, weight: Array, shape: tuple[int, int]) -> Array:
    """Add each weight (...) to the four pixels around its point (..., 2)."""
    h, w = shape[0] + 2, shape[1] + 2  # a rim takes what falls outside
    x = np.clip(xy[..., 0].ravel() + 1, 0, w - 1.001)
    y = np.clip(xy[..., 1].ravel() + 1, 0, h - 1.001)
    column, row = x.astype(np.int64), y.astype(np.int64)
    x, y = x - column, y - row
    at = row * w + column
    image = np.zeros(h * w)
    for down, right in np.ndindex(2, 2):
        share = weight.ravel() * np.abs(1 - down - y) * np.abs(1 - right - x)
        image += np.bincount(at + down * w + right, share, h * w)
    return image.reshape(h, w)[1:-1, 1:-1].astype(np.float32)


def _tissue(s: Scene) -> Array:
    """Trunk, neck, head and arms."""
    v, h, wall = s.v, s.lung, s.wall
    up = np.clip(0.3 - s.arm, 0, 1)
    chest = [1 + wall, 1.05 + wall, 1 + wall, 1.03 + wall]
    borders = [0.5, 0.42, 0.45 + 0.3 * up, 0.75 + 0.2 * up, *chest]
    width = _curve(v, [-1.3, -0.5, -0.35, -0.16, 0.05, 0.3, 0.6 * h, h + 1], borders)
    at = [-1.3, -0.45, -0.1, 0.15, 0.5, 0.8 * h, h + 1]
    depth = _curve(v, at, [0.7, 0.55, 0.55, 0.62, 0.86, 0.96, 1.1])
    plump = _curve(v, [-1.3, -0.3, 0.2, 0.7 * h, h + 1], [0.5, 0.8, 1.2, 0.7, 0.5])
    trunk = depth * np.maximum(1 - (s.u / width) ** 2, 0) ** plump
    out, down = np.abs(s.u) - 0.98, v - 0.08  # from the shoulder
    c, d = np.cos(s.arm), np.sin(s.arm)
    along = np.clip(out * c + down * d, 0, 1.6)
    gap = (out - along * c) ** 2 + (down - along * d) ** 2
    arms = 1.2 * np.sqrt(np.maximum((0.17 + 0.5 * wall) ** 2 - gap, 0))
    gas = s.bubble**2 * _ball(s, (0.5, s.base + s.tilt + 0.25), (0.3, 0.17))  # in the stomach
    head = _ball(s, (s.turn, -s.chin - 0.55), (0.55, 0.55))
    return np.maximum(trunk, arms) + 0.6 * head - 0.22 * gas


def _half_width(s: Scene, v: Array) -> Array:
    """Inner half width of the rib cage at height v."""
    narrow = (1 - np.clip(v / (1.15 * s.lung), 0, 1)) ** s.cage
    return np.maximum(1 - narrow, 1e-4) ** 0.5


def _heart(s: Scene) -> Array:
    """Depth of heart and great vessels, between their right and left borders."""
    v, h, wide = s.v, s.base, s.upper
    u = s.u - 0.25 * s.turn
    r = s.heart * (1.08 - 0.16 * s.age)
    top, above = [-1.3, -0.05, 0.04 * h, 0.15 * h], [0.4, 0.33, 0.25, wide]
    at = [*top, 0.45 * h, 0.7 * h, 0.9 * h, h + 0.1, h + 1]
    right = _curve(v, at, [*above, wide + 0.02, 0.33 * r, 0.36 * r, 0.25, 0.2])
    at = [*top, 0.27 * h, 0.4 * h, 0.55 * h, s.apex * h, h + 0.12, h + 0.4, h + 1]
    borders = [*above, wide + s.knob, wide + 0.03, 0.32 * r, 0.6 * r, 0.6 * r, 0.3, 0.3]
    left = _curve(v, at, borders)
    depth = _curve(v, [-1.3, 0.1 * h, 0.5 * h, 0.8 * h, h + 1], [0.8, 0.7, 0.62, 0.66, 0.7])
    border = np.where(u < 0, right, left)
    body = np.maximum(1 - (u / border) ** 2, 0) ** 0.4
    return np.maximum(depth * body, _bump(u / 0.13))


def _air(s: Scene) -> Array:
    """Depth of air in the lungs: the cage, less the heart, above the diaphragm."""
    half = _half_width(s, s.v)
    air = half**0.9 * np.maximum(1 - (s.u / half) ** 2, 0) ** 0.4
    x = np.abs(s.u) - 0.45
    arch = np.where(x > 0, x / 0.5, x / 0.9) ** 2
    dome = s.base + np.where(s.u < 0, 0, s.tilt) + s.dome * arch
    behind = 0.25 * np.exp(-np.maximum(s.v - dome, 0) / 0.2)  # lung that reaches down behind it
    share = behind + (1 - behind) * _step(dome - s.v, 0.015)
    return np.maximum(air - _heart(s), 0) * share


def _lungs(s: Scene, pneumonia: str | None) -> Array:
    """Lungs as removed attenuation; vessels, fine mottle and opacities in them."""
    air, rng = _air(s), s.rng(3)
    mottle = 0.012 * (_texture(s, rng, 14) + _texture(s, rng, 30))
    share, seen = OPACITY[pneumonia](s)
    inside = np.minimum(air / 0.25, 1)
    return (_vessels(s) * seen + mottle) * inside - 0.76 * air * (1 - share)


def _patches(s: Scene) -> tuple[Array, Array]:
    """Patches around both hila: share of the air replaced, 0 to 1, and how visible vessels stay."""
    rng = s.rng(4)
    cloud = 0.75 + 0.35 * _texture(s, rng, 2.5) + 0.2 * _texture(s, rng, 6)
    u, v = (np.abs(s.u) - 0.3) / 0.45, (s.v / s.base - 0.6) / 0.45
    share = np.clip(rng.uniform(0.35, 0.65) * _bump(u, v) * cloud, 0, 0.9)
    return share, 1 + 0.4 * share


def _lobe(s: Scene) -> tuple[Array, Array]:
    """One lobe, up to its fissure. The same two as `_patches`."""
    rng, h = s.rng(4), s.base
    out = s.u * rng.choice([-1, 1])
    upper = rng.random() < 0.4
    fissure = (0.52 + rng.uniform(-0.12, 0.12)) * h - rng.uniform(-0.1, 0.4) * (out - 0.5)
    beyond = (fissure - s.v if upper else s.v - fissure) / h
    x = (out - rng.uniform(0.35, 0.6)) / rng.uniform(0.3, 0.5)
    y = beyond - rng.uniform(0.1, 0.25)
    cloud = _bump(x, y / 0.3) + (0.14 * _texture(s, rng, 4) + 0.06 * _texture(s, rng, 10))
    edge = rng.uniform(0.02, 0.1)
    share = _step(cloud - 0.4, 0.3) * _step(beyond, edge) * _step(out, 0.05)
    return rng.uniform(0.5, 0.9) * share, 1 - 1.4 * share  # below 0: bronchi stand out as air


OPACITY = {None: lambda s: (0, 1), "bacteria": _lobe, "virus": _patches}  # by the pneumonia


def _vessels(s: Scene) -> Array:
    """Trees that fan out from the hila: 24 stems, each forking twice, two times over."""
    rng, points, n = s.rng(5), s.shape[0] // 4, 24
    t = np.linspace(0, 1, points)
    side = np.tile([-1.0, 1.0], 12)
    radius = 0.024 * s.vessels
    angle = np.linspace(-1.5, 1.6, n) + rng.normal(0, 0.15, n)
    length = rng.uniform(0.45, 0.85, n)
    root = np.stack([rng.uniform(0.12, 0.28, n), 0.47 * s.base + 0.16 * np.sin(angle)], 1)
    x = 0
    for _ in range(3):
        wind = rng.normal(0, (0.6, 0.25), (n, 2))
        way = angle[:, None] + wind[:, :1] * t + wind[:, 1:] * np.sin(5 * t)
        step = np.stack([np.cos(way), np.sin(way)], -1) * (length / points)[:, None, None]
        line = np.cumsum(step, 1) + root[:, None]  # (n, points, 2), as if all on one side
        lines = np.stack([line[..., 0] * side[:, None], line[..., 1], 0 * way], -1)
        x = x + _tubes(s, lines, radius * (1 - 0.6 * t), 1.1)
        fork = (rng.uniform(0.2, 0.9, (n, 2)) * points).astype(int)
        root = line[np.arange(n)[:, None], fork].reshape(-1, 2)
        n = 2 * n
        angle = np.repeat(angle, 2) + rng.normal(0, 0.15, n) + rng.choice([-0.6, 0.6], n)
        side = np.repeat(side, 2)
        length = np.repeat(length, 2) / 2
        radius = 0.62 * radius
    return 0.12 * np.tanh(x / 0.12)


def _ribs(s: Scene) -> Array:
    """Eleven pairs on the cage, from the spine back, round the side and down to the front."""
    number = np.repeat(np.arange(11), 2)[:, None]
    side = np.tile([-1.0, 1.0], 11)[:, None]
    last = 2.45 - 0.22 * np.maximum(number - 6, 0)  # the lower ribs end at the side
    phi = 0.1 + (last - 0.1) * np.linspace(0, 1, s.shape[0])  # angle around the cage, 0 at the back
    fall = s.rib_drop * (0.55 + 0.08 * number) * (1 - np.cos(phi)) / 2 - 0.4 * np.sin(phi) ** 2
    v = s.rib_gap * (number - 0.1 + 0.25 * s.breath * number + fall)
    half = _half_width(s, v + 0.4 * s.rib_gap) + 0.02
    u = side * (0.1 + (half - 0.1) * np.sin(phi))
    lines = np.stack([u, v, -0.75 * half * np.cos(phi)], -1)
    front = _step(phi - 1.9, 0.3)  # wider and fainter there
    radius = s.rib_radius * s.rib_gap * (1 + 0.2 * front)
    density = s.bone * (1 - 0.45 * front) * np.minimum(1.9 - 0.12 * number, 1)
    x = _tubes(s, lines, radius, density, 0.8)
    return 0.25 * np.tanh(x / 0.25)  # where many overlap, attenuation saturates


def _pairs(s: Scene) -> Array:
    """Clavicles, humeri, shoulder blades' edges, jaw; trachea and bronchi as missing tissue."""
    t = np.linspace(0, 1, s.shape[0])
    o = np.zeros(s.shape[0])
    fork = 0.4 * s.base
    rise = 0.24 * np.clip(-s.arm, 0, 1) + 0.1
    c, d = 1.3 * np.cos(s.arm), 1.3 * np.sin(s.arm)
    knob = np.sqrt(np.clip(t / 0.03, 0.01, 1)) * (0.05 + 0.03 * _bump((t - 0.03) / 0.06))
    jaw = 1.6 * t
    tubes = [  # one side's: u, v, z, radius, density
        (0.12 + 0.85 * t, 0.16 - rise * t - 0.04 * np.sin(5.5 * t), (1 - t) / 2, o + 0.026, o + 2),
        (1.04 + c * t, 0.1 + d * t, o, knob, o + 1.3),
        (1.02 - 0.05 * t - 0.1 * t**2, 0.16 + 0.5 * t, o - 0.5, 0.03 - 0.015 * t, o + 1),
        (0.86 + 0.14 * t, 0.06 + 0.1 * t**2, o - 0.4, 0.025 + 0.03 * t, o + 0.8),
        (0.44 * np.cos(jaw), 0.44 * np.sin(jaw) - s.chin - 0.5, o + 1, o + 0.04, o + 1.2),
        (0.004 * t, (fork + 0.7) * t - 0.7, o + 0.1, o + 0.05, o - 0.4),
        (0.24 * t, fork + 0.2 * t**0.8, o + 0.1, o + 0.035, o - 0.8),
    ]
    u, v, z, radius, density = np.moveaxis(np.array(tubes), 1, 0)
    sides = [np.stack([side * u, v, z], -1) for side in (-1, 1)]
    return sum(_tubes(s, lines, radius, density, 0.6) for lines in sides)


def _spine(s: Scene) -> Array:
    """Vertebral bodies with discs between them, pedicles and spinous processes."""
    u = s.u + 0.6 * s.turn
    phase = (s.v / s.rib_gap) % 1
    width = 0.1 + 0.02 * np.clip(s.v, -1, 1.5)
    block = _step(phase - 0.12, 0.06) * _step(0.9 - phase, 0.06)
    pedicles = _bump((np.abs(u) - 0.6 * width) / 0.022, (phase - 0.4) / 0.16)
    process = _bump(u / 0.02, (phase - 0.75) / 0.2)
    body = _step(width - np.abs(u), 0.03) * (0.04 + 0.07 * block)
    return body + 0.05 * (pedicles + process)


def _expose(s: Scene, x: Array) -> Array:
    """Attenuation to grey levels, float: blur, edge enhancement, scatter, film curve, grain."""
    x = cv2.GaussianBlur(x.astype(np.float32), (0, 0), s.blur)
    edges = x - cv2.GaussianBlur(x, (0, 0), 5)
    haze = cv2.blur(cv2.resize(x, (64, 64), interpolation=cv2.INTER_AREA), (15, 15))
    haze = cv2.resize(haze, s.shape[::-1])
    x = (1 - s.scatter) * x + s.scatter * haze + s.boost * edges
    x = np.maximum(s.exposure * x, 0) ** s.gamma
    grey = 255 * (s.black + (s.white - s.black) * np.tanh(1.25 * x))
    grain = s.rng(9, s.film).standard_normal(s.shape, dtype=np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), 0.7)
    return grey + 2 * s.noise * grain * np.clip(grey / 80, 0, 1)


def _finish(s: Scene, grey: Array) -> Array:
    """Collimation on some sides, the burnt-in marker; uint8."""
    rng, (h, w) = s.rng(10, s.film), s.shape
    shares = np.maximum(rng.uniform(-0.08, 0.06, 4), 0)
    top, low, left, right = (shares * (h, h, w, w)).astype(int)
    if s.border > 0:
        field = np.zeros(s.shape)
        field[top : h - low, left : w - right] = 1
        grey = grey * cv2.GaussianBlur(field, (0, 0), 1)
    film = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
    y = rng.choice([-0.1, 0.08, 0.08, 0.25, 0.5, 0.5])  # now and then beyond the film
    at = int(rng.uniform(0.01, 0.08) * w), int(y * h)
    size = rng.uniform(0.35, 0.6)
    cv2.putText(film, "R", at, cv2.FONT_HERSHEY_SIMPLEX, size, 245, 1, cv2.LINE_AA)
    return film


# Films per folder (8 of each class in val, as in Kermany's set), and numbers of train patients who
# have a film there too, as happens in Kermany's set.
FOLDERS = {
    ("train", "NORMAL"): (688, []),
    ("train", "PNEUMONIA"): (1036, []),
    ("val", "NORMAL"): (8, [1]),
    ("val", "PNEUMONIA"): (8, [1, 5]),
    ("test", "NORMAL"): (180, [13, 25]),
    ("test", "PNEUMONIA"): (260, [9, 21, 33]),
}
FILMS = sum(room for room, _ in FOLDERS.values())
SAMPLE = 100  # films of the sample in the repository, and a few more: see `plan`


class PlannedFilm(NamedTuple):
    """The film in one file; `patient` differs between the classes, `number` may not."""

    path: Path  # below the data set's folder
    patient: int
    film: int
    pneumonia: str | None


def _plan_film(split: str, label: str, serial: int, number: int, film: int) -> PlannedFilm:
    """The `film`-th of the class's patient `number`; named as Kermany's files are."""
    if label == "PNEUMONIA":
        kind = "virus" if number % 3 == 2 else "bacteria"
        person = 1 + number - (number + 3) // 6  # some persons are two, one of each kind
        path = Path(split, label, f"person{person}_{kind}_{serial}.jpeg")
        return PlannedFilm(path, number + 10_000, film, kind)
    stem = f"NORMAL2-IM-{1001 + number}" if number % 5 > 2 else f"IM-{115 + number:04d}"
    again = f"-{film + 1:04d}" if film else ""
    return PlannedFilm(Path(split, label, f"{stem}-0001{again}.jpeg"), number, film, None)


def plan(films: int = FILMS) -> Iterator[PlannedFilm]:
    """The first films of every folder, in their share of `films`, at least two a folder.

    Every fourth patient has two or three films; a guest's is that patient's fourth.
    A file of a smaller plan has the same name, folder and film in every larger one."""
    following: Counter[str] = Counter()  # the next patient of each class
    serial = 0
    for (split, label), (room, guests) in FOLDERS.items():
        numbers = count(following[label])
        own = ((n, k) for n in numbers for k in range(1 + (n % 4 == 1) + (n % 12 == 5)))
        chosen = list(islice(own, room - len(guests)))
        following[label] = 1 + chosen[-1][0]
        for place, guest in enumerate(guests):
            chosen.insert(place * room // len(guests), (guest, 3))
        wanted = max(2, round(room * films / FILMS))
        for place, (number, film) in enumerate(chosen[:wanted], serial + 1):
            yield _plan_film(split, label, place, number, film)
        serial += room


def write_film(folder: Path, planned: PlannedFilm) -> None:
    """Draw one film and store it as JPEG; OSError where the disk refuses."""
    image = draw_film(planned.patient, planned.film, planned.pneumonia, seed=1)
    _, jpeg = cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    path = folder / planned.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg)


def write_bundle(folder: str | Path, films: int = FILMS) -> int:
    """Write about `films` JPEGs, 256 px high, in Kermany's layout; returns their number.

    `folder`/{train,val,test}/{NORMAL,PNEUMONIA}/; files of the same name are overwritten. OSError
    where the disk refuses. Patients of the two classes differ, whatever their numbers."""
    from tqdm.contrib.concurrent import thread_map

    wanted = list(plan(films))
    # threads: most of a film is drawn in numpy and OpenCV, which release the interpreter lock.
    # After Ctrl-C or a full disk they begin no new film.
    threads = min(os.cpu_count() or 1, 4)
    shown = {"unit": "film", "disable": not watched()}
    thread_map(partial(write_film, Path(folder)), wanted, max_workers=threads, **shown)
    return len(wanted)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(f"{write_bundle(folder, films=SAMPLE)} films in {folder}")
