"""One door per format: nobody else parses what somebody else may have written."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOORS = {
    r"\bjson\.loads?\(": "shards/doors/json_text.py",
    r"\bImage\.open\(": "shards/images.py",
    r"\b(np|numpy)\.load\(|\bzipfile\.ZipFile\(": "shards/doors/npz.py",
    r"\byaml\.(load|safe_load|full_load|compose|parse)": "t4p/config/yaml_text.py",
}
# What this program wrote a moment ago for itself, and nobody sends.
OWN_FILES = {
    "commands/doctor/finding.py": "what a probe in a process of its own tells",
    "commands/doctor/probes.py": "a note of the installer",
    "commands/pages/sheet.py": "pictures that it has just drawn",
    "launch/driver.py": "what Ray puts into the environment",
    "launch/outcome.py": "what workers of this launch tell",
    "launch/progress.py": "metrics of a run of this launch",
    "launch/worker.py": "what the driver of this launch tells",
    "recipes/small_clip/trainer.py": "a model configuration of the repository",
    "shards/scene.py": "writes the archive",
    "t4p/data/board.py": "what the fetcher of this run has counted",
    "t4p/runs/logs.py": "metrics of this run",
}


def test_every_format_has_one_door() -> None:
    found = {}
    folders = [ROOT / name for name in ("shards", "t4p", "launch", "commands", "recipes")]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        for pattern, door in DOORS.items():
            if name != door and re.search(pattern, text):
                found.setdefault(name, pattern)
    assert {name: found[name] for name in found if name not in OWN_FILES} == {}
    assert set(OWN_FILES) <= set(found), "no longer needs to stand here"
