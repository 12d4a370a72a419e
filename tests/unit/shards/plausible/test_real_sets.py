"""Real sets as they are, and with every usual fault: none is refused, and every fault that can show does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from real_sets import POSED
from shard_faults import FAULTS, judged, looked_at

from shards.plausible.facts import View
from shards.plausible.verdicts import Finding


@cache
def views_of(data: Path, name: str) -> tuple[View, ...]:
    return looked_at(POSED[name](data))


@pytest.mark.parametrize("name", POSED)
def test_a_right_set_passes_and_its_poses_are_proved(shared_data: Path, name: str) -> None:
    findings = judged(views_of(shared_data, name))
    assert [finding for finding in findings if finding.verdict in ("cannot be right", "suspicious")] == []
    assert of(findings, "poses").verdict == of(findings, "depth").verdict == "fine"


@pytest.mark.parametrize("name", POSED)
def test_a_right_set_without_poses_passes(shared_data: Path, name: str) -> None:
    views = [replace(view, world_from_camera=None) for view in views_of(shared_data, name)]
    findings = judged(views)
    assert [finding for finding in findings if finding.verdict in ("cannot be right", "suspicious")] == []
    assert of(findings, "poses").verdict == "cannot be known"


# What is said of the cause: of a flip and an inverse, of units, of another K.
CAUSES = {
    "inverted": "world to camera",
    "flipped": "OpenGL",
    "mirrored": "x right, y up, z ahead",
    "millimetres": "translations in millimetres",
    "depth x 5": "depth",
    "depth / 5": "depth",
    "depth x 1000": "depth scale",
    "K x 2": "K of an image",
    "K / 2": "K of an image",
}


@pytest.mark.parametrize("fault", CAUSES)
@pytest.mark.parametrize("name", POSED)
def test_a_fault_is_refused_and_its_cause_named(shared_data: Path, name: str, fault: str) -> None:
    views = [FAULTS[fault](view) for view in views_of(shared_data, name)]
    wrong = [finding for finding in judged(views) if finding.verdict == "cannot be right"]
    assert any(CAUSES[fault] in finding.cause for finding in wrong), wrong


@pytest.mark.parametrize("fault", ["K x 2", "K / 2", "depth x 1000", "bits turned"])
@pytest.mark.parametrize("name", POSED)
def test_without_poses_what_can_show_does(shared_data: Path, name: str, fault: str) -> None:
    views = [replace(FAULTS[fault](view), world_from_camera=None) for view in views_of(shared_data, name)]
    assert [finding for finding in judged(views) if finding.verdict in ("cannot be right", "suspicious")]


def of(findings: list[Finding], what: str) -> Finding:
    return next(finding for finding in findings if finding.what == what)


def test_depth_of_sun_rgbd_as_it_lies_on_disk_is_told(shared_data: Path) -> None:
    from PIL import Image

    from shards.plausible.facts import coding_of

    for path in (shared_data / "sunrgbd_original").rglob("depth/*.png"):
        raw = np.asarray(Image.open(path)).astype(np.uint16)
        assert coding_of(raw).step_bits == 3
        assert coding_of(((raw >> 3) | (raw << 13)).astype(np.uint16)).step_bits == 0
