"""Draw chest films of fictitious children. Left and right are the patient's: the left lung is at image right.

A drawing depends on the findings and a seed, never on age or sex. A report whose wording follows the age therefore
proves that the model received the prompt.
"""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pedcxr_serve.demo.findings import Case, Finding, Kind, Zone

Plane = NDArray[np.floating[Any]]

SIZE = (320, 288)
"""Default height and width in pixels; not square, so that tests detect a resize that swaps or pads them."""


def render(case: Case, seed: int, *, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Draw the film of a case: 8-bit grey, shape ``size`` = (height, width), bright is dense (MONOCHROME2).

    The pixels depend on the findings and the seed only. The patient's left is on the right of the image.
    """
    rng = np.random.default_rng([seed, 2])
    film = _expose(_Chest(case.findings, rng, size).density(), rng)
    return np.asarray(np.clip(film * 255 + 0.5, 0, 255), dtype=np.uint8)


def encode_png(film: NDArray[np.uint8]) -> bytes:
    """Encode an 8-bit grey film, shape (height, width), as PNG without metadata."""
    buffer = BytesIO()
    Image.fromarray(film).save(buffer, format="PNG")
    return buffer.getvalue()


def _step(distance: Plane, soft: float) -> Plane:
    """Return a smooth step from 0 to 1 at distance zero, over a width of about ``soft``."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / soft), dtype=np.float32)


def _expose(density: Plane, rng: np.random.Generator) -> Plane:
    """Apply exposure and noise; the result is about 0 (black) to 1."""
    gain, offset, gamma = rng.uniform(0.86, 1.08), rng.uniform(0.0, 0.06), rng.uniform(0.85, 1.2)
    film = offset + gain * np.clip(density, 0, 1) ** gamma
    noise = rng.standard_normal(film.shape, dtype=np.float32)
    grain = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 1.73
    return np.asarray(film + grain * rng.uniform(0.008, 0.028), dtype=np.float32)


class _Chest:
    """One chest. x runs from -1 (the patient's right) to 1, y from 0 (top) to 1, after a small random pose."""

    def __init__(self, findings: tuple[Finding, ...], rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.findings = findings
        self.jitter = rng.uniform(-1, 1, 48)  # sampled at the start, so that a finding does not change the others
        self._jitter_index = 0
        height, width = size
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        x, y = 2 * (x + 0.5) / width - 1, (y + 0.5) / height
        turn, zoom = 0.045 * self._j(), 1 + 0.04 * self._j()
        dx, dy = 0.04 * self._j(), 0.02 * self._j()
        across, down = (x - dx) * zoom, (y - 0.5 - dy) * zoom
        self.x: Plane = np.asarray(across + 2 * turn * down, dtype=np.float32)
        self.y: Plane = np.asarray(down - 0.5 * turn * across + 0.5, dtype=np.float32)
        self.out: Plane = np.abs(self.x)

    def _j(self) -> float:
        self._jitter_index += 1
        return float(self.jitter[self._jitter_index - 1])

    def _has(self, kind: Kind) -> bool:
        return any(finding.kind is kind for finding in self.findings)

    def density(self) -> Plane:
        film = self._body()
        lungs, level = self._lungs()
        film = film * (1 - lungs) + lungs * (0.17 if self._has(Kind.HYPERINFLATION) else 0.22)
        film += lungs * self._vessels()
        film = self._in_lungs(film, lungs, level)
        film = self._bones(film)
        film = self._centre(film)
        return self._devices(film)

    def _body(self) -> Plane:
        """Draw air, soft tissue, shoulders and abdomen."""
        flank = 0.86 + 0.03 * self._j()
        shoulders = 0.13 + 0.10 * np.clip(self.out - 0.22, 0, 1) ** 1.2
        neck = _step(0.21 - self.out, 0.02) * _step(0.3 - self.y, 0.05)
        trunk = _step(flank - self.out + 0.12 * np.clip(0.45 - self.y, 0, 1), 0.02) * _step(self.y - shoulders, 0.02)
        body = np.maximum(trunk, neck)
        return np.asarray(0.03 + body * (0.42 + 0.16 * _step(self.y - 0.72, 0.15)), dtype=np.float32)

    def _lungs(self) -> tuple[Plane, Plane]:
        """Return the lung fraction of each pixel, and the y of the diaphragm below it."""
        flat = self._has(Kind.HYPERINFLATION)
        right_level, left_level = 0.715 + 0.018 * self._j(), 0.745 + 0.018 * self._j()
        curve = 0.10 + 0.02 * self._j()
        if flat:
            right_level, left_level, curve = right_level + 0.105, left_level + 0.10, 0.015
        level = np.where(self.x < 0, right_level, left_level) + curve * ((self.out - 0.36) / 0.3) ** 2
        wide = 0.335 + 0.012 * self._j() + (0.025 if flat else 0)
        taper = 0.70 + 0.30 * np.clip((self.y - 0.12) / 0.4, 0, 1)
        self.rim: Plane = np.asarray(
            (np.abs(self.out - 0.40 + 0.09 * (1 - taper) / 0.3) / (wide * taper)) ** 2.6
            + (np.abs(self.y - 0.56) / 0.43) ** 2.6,
            dtype=np.float32,
        )
        lungs = _step(1 - self.rim, 0.10) * _step(level - self.y, 0.012)
        return np.asarray(lungs, dtype=np.float32), np.asarray(level, dtype=np.float32)

    def _vessels(self) -> Plane:
        """Return vessels: streaks that fade with the distance from the hila."""
        dx, dy = self.out - 0.16, 1.1 * (self.y - 0.46)
        far = np.sqrt(dx * dx + dy * dy)
        turn = np.arctan2(dy, dx) + 0.25 * np.sin(9 * far + 3 * self._j())
        streak = np.cos(9 * turn + 3 * self._j()) + np.cos(14 * turn + 3 * self._j() + 2 * (self.x > 0))
        return np.asarray((0.13 + 0.05 * streak) * np.exp(-far / 0.17), dtype=np.float32)

    def _in_lungs(self, film: Plane, lungs: Plane, level: Plane) -> Plane:
        spots = [self._j() for _ in range(12)]
        for finding in self.findings:
            if finding.side is None or finding.kind is Kind.LINE:
                continue
            sign = -1 if finding.side == "right" else 1
            mine = lungs * _step(sign * self.x, 0.01)
            a, b, c, d = spots[:4] if sign < 0 else spots[4:8]
            if finding.zone is not None:
                patch = mine * self._patch(sign, finding.zone, (a, b, c, d))
                film = film + patch * (0.68 - film)
            elif finding.kind is Kind.EFFUSION:
                rise = 0.17 * np.clip((self.out - 0.25) / 0.45, 0, 1) ** 2.5
                fluid = mine * _step(self.y - (level.min() - 0.05 + 0.015 * a - rise), 0.015)
                film = film + fluid * (0.70 - film)
            else:
                film = self._pneumothorax(film, mine, 0.27 + 0.03 * a)
        return film

    def _patch(self, sign: int, zone: Zone, jitter: tuple[float, ...]) -> Plane:
        out, down = {"upper": (0.40, 0.29), "mid": (0.47, 0.465), "lower": (0.53, 0.635)}[zone]
        a, b, c, d = jitter
        dx = (sign * self.x - out - 0.025 * a) / (0.17 + 0.02 * c)
        dy = (self.y - down - 0.015 * b) / (0.08 + 0.008 * d)
        cloud = np.sin(21 * self.x + 9 * a) * np.sin(34 * self.y + 9 * b) + np.sin(38 * self.x - 25 * self.y + 9 * d)
        return 0.92 * _step(1 - np.sqrt(dx * dx + dy * dy) + 0.12 * cloud, 0.42)

    def _pneumothorax(self, film: Plane, mine: Plane, inner: float) -> Plane:
        above = _step(0.66 - self.y, 0.04) * _step(self.out - 0.22, 0.04)
        air = mine * _step(self.rim - inner, 0.05) * above
        film = film + air * (0.05 - film)
        pleura = mine * above * np.exp(-(((self.rim - inner) / 0.045) ** 2))
        return np.asarray(film + 0.36 * pleura, dtype=np.float32)

    def _bones(self, film: Plane) -> Plane:
        inside = _step(1.35 - self.rim, 0.15) * _step(self.y - 0.1, 0.02)
        spacing, start = 0.083 + 0.004 * self._j(), 0.04 * self._j()
        back = (self.y - start - 0.13 * (self.out / 0.7) ** 1.6) / spacing
        front = (self.y - start + 0.20 * self.out) / (1.35 * spacing)
        ribs = 0.085 * _step(np.cos(2 * np.pi * back) - 0.25, 0.35)
        ribs += 0.04 * _step(np.cos(2 * np.pi * front) - 0.4, 0.4) * _step(self.out - 0.28, 0.06)
        film = film + inside * ribs
        clavicle = self.y - 0.185 + 0.07 * (self.out - 0.1)
        reach = _step(0.72 - self.out, 0.03) * _step(self.out - 0.06, 0.02)
        return np.asarray(film + 0.13 * np.exp(-((clavicle / 0.013) ** 4)) * reach)

    def _centre(self, film: Plane) -> Plane:
        """Draw mediastinum, heart, spine and airways."""
        bulk = 0.72 - 0.1 * np.exp(-((self.x / 0.5) ** 2))
        half: Plane | float = 0.125 + 0.012 * self._j()
        sail = 0.285 + 0.015 * self._j()
        if self._has(Kind.WIDE_MEDIASTINUM):
            bulge = np.clip((self.y - 0.16) / 0.10, 0, 1) * np.clip((0.54 - self.y) / 0.12, 0, 1)
            half = half + (sail - half) * np.sin(np.pi / 2 * bulge)
        central = _step(half - self.out, 0.015) * _step(self.y - 0.12, 0.03)
        wide, shift = 0.25 + 0.02 * self._j(), 0.10 + 0.015 * self._j()
        tall = 0.155 + 0.01 * self._j()
        if self._has(Kind.CARDIOMEGALY):
            wide, shift, tall = wide + 0.19, shift + 0.03, tall + 0.035
        dx, dy = self.x - shift, self.y - 0.635 - 0.12 * (self.x - shift)
        heart = _step(1 - (dx / wide) ** 2 - (dy / tall) ** 2, 0.10)
        mass = np.maximum(central, heart)
        film = film + mass * np.clip(bulk - film, 0, 1)
        spine = _step(0.085 - self.out, 0.012)
        film = film + spine * (0.07 + 0.05 * np.cos(2 * np.pi * self.y / 0.062 + self._j()))
        airway = _step(0.034 - self.out, 0.01) * _step(0.36 - self.y, 0.01)
        bronchi = _step(0.028 - np.abs(self.y - 0.36 - 0.42 * self.out), 0.01) * _step(0.17 - self.out, 0.02)
        return film - 0.20 * np.maximum(airway, bronchi * _step(self.y - 0.345, 0.01))

    def _devices(self, film: Plane) -> Plane:
        a, b, c = self._j(), self._j(), self._j()
        if self._has(Kind.TUBE):
            film = self._wire(film, ((0.006 * a, -0.1), (0.006 * b, 0.235 + 0.012 * c)), 0.022)
        if self._has(Kind.TUBE_LOW):
            film = self._wire(film, ((0.006 * a, -0.1), (0.006 * b, 0.36), (-0.30, 0.505 + 0.01 * c)), 0.022)
        for finding in self.findings:
            if finding.kind is Kind.LINE:
                sign = -1 if finding.side == "right" else 1
                entry = ((sign * 0.95, 0.30), (sign * 0.62, 0.235 + 0.01 * a), (sign * 0.35, 0.225))
                film = self._wire(film, (*entry, (-0.03, 0.255), (-0.085, 0.30), (-0.085, 0.42 + 0.015 * b)), 0.014)
        return film

    def _wire(self, film: Plane, points: tuple[tuple[float, float], ...], radius: float) -> Plane:
        """Draw a dense line through the points; ``radius`` is in units of x."""
        near = np.full_like(self.x, 9.0)
        for (x0, y0), (x1, y1) in pairwise(points):
            ax, ay, bx, by = self.x - x0, 2.2 * (self.y - y0), x1 - x0, 2.2 * (y1 - y0)
            along = np.clip((ax * bx + ay * by) / (bx * bx + by * by), 0, 1)
            near = np.minimum(near, np.hypot(ax - along * bx, ay - along * by))
        return np.asarray(film + _step(radius - near, 0.005) * (1.0 - film) * 0.9, dtype=np.float32)
