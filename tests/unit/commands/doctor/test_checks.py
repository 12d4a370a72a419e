"""The doctor's judgement, its fixes and its words; tests/integration has the whole of it on real things."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from packaging.requirements import Requirement

from commands.doctor import probes as doctor_probes
from commands.doctor import storage as doctor_storage
from commands.doctor.checks import CHECKS, RAY, STORAGE, Check, Diagnosis, Row, explain_end, make, with_fix
from commands.doctor.finding import Finding, find_out, read_finding, write_finding
from commands.doctor.fixes import MINKOWSKI, MINKOWSKI_LIBRARIES, install_minkowski, pip_install, project_requirements
from commands.doctor.report import print_diagnosis, verdict
from commands.main import main
from shards.stores.folder import FolderStore
from t4p.config.network import ModelConfig

ROOT = Path(__file__).resolve().parents[4]
BY_NAME = {check.name: check for check in (*CHECKS, RAY, STORAGE)}
WORKS = Finding("works", "1.0")


def row(name: str, state: str = "works", found: str = "as it should", fix: str = "") -> Row:
    return Row(BY_NAME[name], Finding(state, found, fix))  # type: ignore[arg-type]


# ---- what is checked, and what counts --------------------------------------------------------------------------------


def test_every_sparse_backend_is_tried_and_every_check_has_a_probe() -> None:
    backends = set(get_args(ModelConfig.model_fields["sparse_backend"].annotation)) - {"auto"}
    assert {check.arguments[0] for check in CHECKS if check.probe == "sparse"} == backends
    assert {check.probe for check in BY_NAME.values()} == set(doctor_probes.PROBES)


def test_only_what_is_needed_decides_the_exit_status() -> None:
    fine = (row("torch"), row("gpu", "missing"), row("sparse: minkowski", "broken"), row("storage", "skipped"))
    assert Diagnosis(fine).exit_status == 0
    assert verdict(Diagnosis(fine)) == (
        "everything that is needed works (without, and not needed: gpu, sparse: minkowski)"
    )
    for state in ("missing", "broken"):
        failed = Diagnosis((*fine, row("deepspeed", state), row("storage", state)))
        assert failed.exit_status == 1
        assert verdict(failed) == "2 needed thing(s) do not work: deepspeed, storage"


def test_json_has_one_object_per_check() -> None:
    finding = Finding("works", "fast", figures={"up_mb_per_second": 12.5})
    document = json.loads(json.dumps(Diagnosis((Row(STORAGE, finding), row("gpu", "missing", "none"))).to_json()))
    storage, gpu = document["checks"]
    assert document["ok"] is True
    assert storage == {
        "name": "storage",
        "state": "works",
        "needed": True,
        "found": "fast",
        "fix": "",
        "figures": {"up_mb_per_second": 12.5},
    }
    assert (gpu["state"], gpu["needed"]) == ("missing", False)


# ---- from a gap to the command that closes it ------------------------------------------------------------------------


def test_what_is_missing_is_installed_with_the_projects_bounds() -> None:
    fixed = with_fix(BY_NAME["deepspeed"], Finding("missing", "deepspeed is not installed"))
    assert fixed.fix.startswith(f"{sys.executable.removeprefix(str(Path.cwd()) + '/')} -m pip install -c ")
    assert fixed.fix.endswith("constraints.txt 'deepspeed<0.20,>=0.19.8'")
    assert with_fix(RAY, Finding("missing", "")).fix.endswith("'ray[default,train]<3,>=2.60'")


def test_what_is_broken_is_installed_again_and_nothing_else_with_it() -> None:
    fix = with_fix(BY_NAME["webdataset"], Finding("broken", "ImportError: ...")).fix
    assert "--force-reinstall --no-deps --no-cache-dir" in fix
    assert fix.endswith("'webdataset<2,>=1.0.2'")


def test_a_fix_that_the_probe_knows_stands_and_what_is_no_gap_has_none() -> None:
    own = Finding("broken", "too old", "see nvidia-smi")
    assert with_fix(BY_NAME["torch"], own) is own
    assert with_fix(BY_NAME["torch"], WORKS) is WORKS
    assert with_fix(BY_NAME["gpu"], Finding("missing", "none on this machine")).fix == ""


def test_minkowski_is_built_as_the_makefile_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"{MINKOWSKI_LIBRARIES} && make minkowski" in makefile
    monkeypatch.chdir(ROOT)
    assert install_minkowski((3, 11), ROOT) == f"{MINKOWSKI_LIBRARIES} && make minkowski"
    newer = "make distclean && make env PYTHON=python3.11"
    assert newer in makefile
    assert install_minkowski((3, 12), ROOT) == newer
    monkeypatch.chdir(tmp_path)
    assert install_minkowski((3, 12), ROOT) == f"cd {ROOT} && {newer}"
    missing = with_fix(BY_NAME["sparse: minkowski"], Finding("missing", f"{MINKOWSKI} is not installed"))
    assert missing.fix == install_minkowski()
    monkeypatch.setattr("commands.doctor.fixes.find_checkout", lambda: None)
    without_checkout = install_minkowski((3, 11))
    tool = (ROOT / "tools" / "build_minkowski.py").read_text()
    for setting in ("-g0", "SETUPTOOLS_USE_DISTUTILS", "stdlib", "--no-build-isolation", "--no-deps"):
        assert setting in without_checkout
        assert setting in tool
    assert "--no-cache-dir" in without_checkout  # pip's own cache knows neither torch nor compiler; the tool's does


def test_the_packages_of_every_extra_are_required_with_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {Requirement(line).name for line in project_requirements()}
    assert {"torch", "deepspeed", "ray", "boto3", "webdataset", "psutil"} <= names
    assert not {"text4point", "pytest", MINKOWSKI} & names
    listed = ["numpy>=2.0", 'deepspeed<0.20,>=0.19.8; extra == "train"', 'pytest>=8; extra == "test"']
    monkeypatch.setattr("commands.doctor.fixes.find_checkout", lambda: None)
    monkeypatch.setattr("commands.doctor.fixes.requires", lambda name: listed)
    assert project_requirements() == ("numpy>=2.0", "deepspeed<0.20,>=0.19.8")


def test_a_package_of_no_bounds_is_named_as_it_is(tmp_path: Path) -> None:
    assert pip_install(["left-pad"], folder=tmp_path).endswith(f"install -c {tmp_path}/constraints.txt left-pad")


# ---- what a probe raises ---------------------------------------------------------------------------------------------


def raises(error: Exception, cause: Exception | None = None) -> Finding:
    def probe() -> Finding:
        raise error from cause

    return find_out(probe)


def test_an_absent_module_is_missing_and_any_other_error_is_broken() -> None:
    absent = ModuleNotFoundError("No module named 'ray'", name="ray")
    assert raises(absent) == Finding("missing", "ray is not installed")
    assert raises(ImportError("a long story with a fix"), absent) == Finding("missing", "ray is not installed")
    symbol = ImportError("_C.so: undefined symbol: _ZN3c10")
    assert raises(ImportError("the same story"), symbol).found == "ImportError: _C.so: undefined symbol: _ZN3c10"
    assert raises(ValueError("boom")) == Finding("broken", "ValueError: boom")
    assert raises(ValueError()).found == "ValueError: without a message"


def test_a_finding_survives_the_way_between_processes(tmp_path: Path) -> None:
    finding = Finding("broken", "slow", "buy another", {"up_mb_per_second": 0.5})
    assert read_finding(tmp_path / "finding") is None
    write_finding(tmp_path / "finding", finding)
    assert read_finding(tmp_path / "finding") == finding


def test_a_probe_that_dies_or_hangs_is_a_broken_row_and_not_the_end() -> None:
    died = make(Check("odd", "no-such-probe", packages=("ray",)))
    assert died.finding.state == "broken"
    assert died.finding.found.startswith("ended with status 1; its last lines:\n")
    assert "KeyError: 'no-such-probe'" in died.finding.found
    assert "--force-reinstall" in died.finding.fix
    began = time.monotonic()
    hung = make(replace(RAY, timeout=0.1))
    assert time.monotonic() - began < 10
    assert hung.finding.found.startswith("did not end within 0.1 s")
    assert hung.finding.fix == "try again when the machine is less busy", "nothing says that a package is broken"
    assert explain_end(RAY, -signal.SIGSEGV, "").found == "crashed with SIGSEGV"
    assert explain_end(RAY, -signal.SIGABRT, "a\n\nb\n").found == "crashed with SIGABRT; its last lines:\na\nb"


# ---- single probes ---------------------------------------------------------------------------------------------------


def test_a_backend_that_computes_something_else_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from t4p.models.sparse.native import NativePyramid

    assert find_out(doctor_probes.probe_sparse, "native").state == "works"
    right = NativePyramid.downsample
    monkeypatch.setattr(NativePyramid, "downsample", lambda *arguments: 1.001 * right(*arguments))
    finding = find_out(doctor_probes.probe_sparse, "native")
    assert finding.state == "broken"
    assert "a convolution on the cpu is off by 0.0" in finding.found


def test_packages_that_do_not_fit_are_listed_with_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_probes, "project_requirements", lambda: ("numpy>=2.0", "webdataset>=99", "no-such>=1"))
    finding = doctor_probes.probe_packages()
    assert finding.state == "broken"
    assert "wanted >=99" in finding.found
    assert "no-such: found none, wanted >=1" in finding.found
    assert "'webdataset<2,>=1.0.2' 'no-such>=1'" in finding.fix
    assert "numpy" not in finding.found + finding.fix
    monkeypatch.setattr(doctor_probes, "project_requirements", lambda: ("no-such>=1",))
    assert doctor_probes.probe_packages().state == "missing"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU that torch can use")
def test_no_gpu_is_not_broken_and_one_that_torch_cannot_use_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert doctor_probes.probe_gpu() == Finding("missing", "none on this machine; everything runs on the CPU")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "built for CUDA 13.0, cannot use it" in doctor_probes.probe_gpu().found
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = doctor_probes.probe_gpu()
    assert (finding.state, "--force-reinstall" in finding.fix) == ("broken", True)


def test_little_room_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(0, 0, 64 * 2**20))
    memory = doctor_probes.probe_shared_memory()
    assert memory.state == "broken"
    assert memory.found.startswith("0.1 GiB free in /dev/shm, wanted 1.0 GiB")
    assert "--shm-size=8g" in memory.fix
    assert "TMPDIR" in doctor_probes.probe_disk().fix
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(0, 0, 64 * 2**30))
    assert {doctor_probes.probe_shared_memory().state, doctor_probes.probe_disk().state} == {"works"}


# ---- storage ---------------------------------------------------------------------------------------------------------


def test_a_folder_works_and_is_left_as_it_was(tmp_path: Path) -> None:
    finding = doctor_storage.try_storage(str(tmp_path / "new" / "place"))
    assert finding.state == "works", finding
    assert set(finding.figures) == {"request_ms", "up_mb_per_second", "down_mb_per_second"}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").write_text("stays")
    assert doctor_storage.try_storage(f"{tmp_path}/").state == "works"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class Replacing(FolderStore):
    def write_if_absent(self, name: str, data: bytes) -> bool:
        self.write(name, data)
        return True


class WholeObjects(FolderStore):
    def read_range(self, name: str, offset: int, length: int) -> bytes:
        return self.read(name)


class Keeping(FolderStore):
    def delete(self, name: str) -> None:
        pass


class Forgetting(FolderStore):
    def list(self) -> tuple[str, ...]:
        return ()


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Replacing, "conditional put: it replaced what was there: of two packers"),
        (WholeObjects, "range: another range came back"),
        (Keeping, "delete: it is still there"),
        (Forgetting, "list: found nothing; wanted once, small"),
    ],
)
def test_storage_that_answers_something_else_is_broken(
    kind: type[FolderStore], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_storage, "open_store", lambda url: kind(Path(url)))
    finding = doctor_storage.try_storage(str(tmp_path))
    assert finding.state == "broken"
    assert finding.found.startswith(found)
    assert "If-None-Match" in finding.fix
    if kind is not Keeping:
        assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = doctor_storage.try_storage(str(tmp_path / "file" / "below"))
    assert finding.state == "broken"
    assert finding.found.startswith(f"put: {tmp_path}/file/below/t4p-doctor-")
    assert finding.fix == "check the path, its permissions and the disk"


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_command_is_printed_in_one_piece_and_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    fix = pip_install(["ray[default,train]"]) + " --and-more" * 12
    diagnosis = Diagnosis((row("torch"), row("ray", "missing", "ray[default] is not installed", fix)))
    print_diagnosis(diagnosis)
    printed = capsys.readouterr().out
    assert f"\n    {fix}\n" in printed
    assert "ray[default] is not installed" in printed
    assert printed.endswith("1 needed thing(s) do not work: ray\n")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["t4p", "doctor", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_exit_status_and_json_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for diagnosis, status in ((Diagnosis((row("torch"),)), 0), (Diagnosis((row("torch", "broken"),)), 1)):
        monkeypatch.setattr("commands.doctor.report.diagnose", lambda url, diagnosis=diagnosis: diagnosis)
        assert call(monkeypatch, "--json") == status
        assert json.loads(capsys.readouterr().out) == diagnosis.to_json()
        assert call(monkeypatch) == status
        assert "torch" in capsys.readouterr().out


@pytest.mark.parametrize("url", ["ftp://bucket/prefix", "s3://", "s3:/bucket", ""])
def test_a_wrong_place_is_a_wrong_call_before_anything_is_tried(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--url", url) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


# ---- real processes, with packages that are not what they should be --------------------------------------------------


def shadow(package: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module in front of an installed package."""
    (folder / f"{package}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_package_that_crashes_at_import_is_a_broken_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow("webdataset", "import os\nos.abort()", tmp_path, monkeypatch)
    crashed = make(BY_NAME["webdataset"])
    assert crashed.finding.state == "broken"
    assert crashed.finding.found.startswith("crashed with SIGABRT")
    assert crashed.is_failure


def test_an_optional_backend_that_is_absent_is_missing_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = f"raise ModuleNotFoundError('No module named {MINKOWSKI}', name='{MINKOWSKI}')"
    shadow(MINKOWSKI, absent, tmp_path, monkeypatch)
    row = make(BY_NAME["sparse: minkowski"])
    assert row.finding == Finding("missing", "MinkowskiEngine is not installed", install_minkowski())
    assert not row.is_failure
