"""docs/readers.md: its reader packs what it says, with worker processes too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from slanted_plane import write_folder

from shards.reader import DatasetReader
from shards.verify import verify

PAGE = Path(__file__).resolve().parents[4] / "docs" / "readers.md"


def test_the_reader_of_the_page_packs_what_it_says(tmp_path: Path, clean_environ: dict[str, str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len([line for line in block.splitlines() if line.strip()]) <= 36
    write_folder(tmp_path / "logs" / "monday", 3)
    root = tmp_path / "logs" / "monday"
    frames = sorted(path.stem for path in (root / "color").iterdir())
    suffix = next((root / "color").iterdir()).suffix
    lines = [f"{i}.5,color/{name}{suffix},depth\\{name}.png,{i} 2 3 0 0 0 1" for i, name in enumerate(frames)]
    (root / "frames.csv").write_text("\ufeff# stamp, color, depth, pose\r\n" + "\r\n".join(lines))
    K = np.loadtxt(next(root.glob("*intrinsic*.txt")))
    (root / "camera.txt").write_text(f"{K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}\n")
    (tmp_path / "mine.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=clean_environ | os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 frames\n"
    assert verify(str(tmp_path / "shards" / "monday")).problems == ()
    reader = DatasetReader(str(tmp_path / "shards" / "monday"))
    frame = reader.read_frame(0, 1)
    assert (frame.dataset, frame.frame_id, frame.timestamp) == ("robot", "1.5", 1.5)
    assert frame.world_from_camera is not None
    np.testing.assert_allclose(frame.world_from_camera, [[-1, 0, 0, 1], [0, -1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
    assert reader.manifest.provenance["source_format"] == "robot"
