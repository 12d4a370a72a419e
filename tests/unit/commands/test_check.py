"""`t4p shards check`, and what `pack` and `verify` say of data that cannot be right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from commands.shards import app
from shards.errors import ShardError
from shards.packing.pack import pack
from shards.sources.options import SourceOptions

W, H = 64, 48


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two frames of a slanted plane in millimetres, labelled, in the folder layout."""
    root = tmp_path / "scene"
    for name in ("color", "depth", "label"):
        (root / name).mkdir(parents=True)
    v, u = np.mgrid[:H, :W]
    for i in range(2):
        Image.fromarray(np.full((H, W, 3), 90 + i, np.uint8)).save(root / "color" / f"{i}.png")
        Image.fromarray((1500 + 50 * i + 8 * u + 3 * v).astype(np.uint16)).save(root / "depth" / f"{i}.png")
        Image.fromarray((u // 32).astype(np.uint8)).save(root / "label" / f"{i}.png")
    np.savetxt(root / "intrinsic.txt", [[57.6, 0, 31.5], [0, 57.6, 23.5], [0, 0, 1]])
    (root / "label_names.txt").write_text("wall\nchair\n")
    return root


def t4p(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_right_data_is_packed_without_a_word_and_checked_raw_and_packed(raw: Path, tmp_path: Path) -> None:
    packed = t4p("pack", "folder", raw, tmp_path / "out", "--depth-scale", 1000, "--workers", 1)
    assert packed.exit_code == 0, packed.output
    assert "suspicious" not in packed.output
    for place in ((raw, "--format", "folder", "--depth-scale", 1000), (tmp_path / "out",)):
        found = t4p("check", *place)
        assert found.exit_code == 0, found.output
        assert "median depth 1.8" in found.output
        facts = json.loads(t4p("check", *place, "--json").stdout)
        assert facts["verdict"] == "fine"
        assert {row["what"] for row in facts["rows"]} == {"depth", "bits", "cameras", "poses", "up", "labels"}


def test_what_cannot_be_right_is_not_packed_unless_as_it_is(raw: Path, tmp_path: Path) -> None:
    call = ("pack", "folder", raw, tmp_path / "out", "--depth-scale", 0.001, "--workers", 1)
    refused = t4p(*call)
    assert refused.exit_code == 1
    assert "--depth-scale 1000, which would make it 1.8" in refused.output
    assert "--as-is" in refused.output
    assert not (tmp_path / "out").exists()
    taken = t4p(*call, "--as-is")
    assert taken.exit_code == 0
    assert "cannot be right  depth" in taken.output
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["provenance"]["options"]["as_is"] is True
    told = t4p("verify", tmp_path / "out")
    assert told.exit_code == 0  # every byte is as packed
    assert "cannot be right  depth" in told.output
    assert t4p("check", tmp_path / "out").exit_code == 1
    assert json.loads(t4p("verify", tmp_path / "out", "--json").stdout)["plausible"]["verdict"] == "cannot be right"


def test_an_ignore_mark_without_a_name_is_refused_from_python_too(raw: Path, tmp_path: Path) -> None:
    labels = np.asarray(Image.open(raw / "label" / "1.png")).copy()
    labels[:5] = 255
    Image.fromarray(labels).save(raw / "label" / "1.png")
    told = SourceOptions(depth_scale=1000)
    with pytest.raises(ShardError, match="255 marks pixels to ignore"):
        pack("folder", raw, str(tmp_path / "out"), source_options=told)
    seen = []
    pack("folder", raw, str(tmp_path / "out"), source_options=told, as_is=True, on_look=seen.append)
    assert [proof.verdict for proof in seen] == ["cannot be right"]


def test_options_of_raw_data_have_no_meaning_for_a_dataset(raw: Path, tmp_path: Path) -> None:
    assert t4p("pack", "folder", raw, tmp_path / "out", "--depth-scale", 1000, "--workers", 1).exit_code == 0
    wrong = t4p("check", tmp_path / "out", "--depth-scale", 5)
    assert wrong.exit_code == 2
    assert "is a dataset" in wrong.output
    assert t4p("check", tmp_path / "nowhere").exit_code == 2
    assert t4p("check", raw, "--format", "fodler").exit_code == 2
