"""Markers: what counts as a checkpoint, and what does not."""

import errno
import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from saved_checkpoint import MODEL, save_checkpoint

from t4p.config.files import load_config
from t4p.errors import CheckpointError
from t4p.runs import checkpoint as checkpoint_module
from t4p.runs.checkpoint import (
    MARKER,
    CheckpointState,
    await_files,
    check_sizes,
    checkpoint_name,
    make_room,
    newest_checkpoint,
    read_state,
    verify_marker,
    write_marker,
)
from t4p.runs.compatibility import refuse_changes

OPTIMIZER = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
STATE = CheckpointState(
    step=3,
    world_size=1,
    config={"run": {"seed": 0, "dir": "a"}, "train": {"num_steps": 5, "learning_rate": 0.1, "zero_stage": 1}},
    shards_sha256=("aa",),
    towers_sha256="f" * 64,
    versions={"torch": "2"},
)


def make_checkpoint(folder, step, marker=True):
    directory = folder / checkpoint_name(step)
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "optimizer.pt").write_bytes(os.urandom(500))
    return save_checkpoint(directory, STATE, os.urandom(1000), marker=marker)


def test_a_whole_checkpoint_passes_and_its_state_comes_back(tmp_path):
    directory = make_checkpoint(tmp_path, 3)
    verify_marker(directory)
    assert read_state(directory) == STATE
    listed = json.loads((directory / MARKER).read_text())["files"]
    assert set(listed) == {MODEL, OPTIMIZER, "sub/optimizer.pt", "state.json"}


def test_the_newest_whole_one_is_chosen_and_the_others_are_named(tmp_path):
    make_checkpoint(tmp_path, 5)
    whole = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 100_000_000, marker=False)
    damaged = make_checkpoint(tmp_path, 20)
    (damaged / MODEL).write_bytes(b"short")
    (tmp_path / "step_00000010.incomplete-0").mkdir()
    chosen, passed_over = newest_checkpoint(tmp_path)
    assert chosen == whole
    assert len(passed_over) == 2
    assert f"no {MARKER}" in passed_over[0]
    assert "step_00000020/mp_rank_00_model_states.pt: 5 bytes, wanted 1000 bytes" in passed_over[1]


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "marker"])
def test_damage_is_found_and_named(tmp_path, damage):
    directory = make_checkpoint(tmp_path, 3)
    victim = directory / "sub" / "optimizer.pt"
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[250] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[:-1])
    elif damage == "remove":
        victim.unlink()
    else:
        victim = directory / MARKER
        victim.write_text("{")
    with pytest.raises(CheckpointError) as caught:
        verify_marker(directory)
    assert str(victim) in str(caught.value)


@pytest.mark.parametrize("victim", [MARKER, "state.json", "sub/optimizer.pt"])
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_among_the_files_is_refused_and_not_waited_for(tmp_path, victim, put):
    directory = make_checkpoint(tmp_path, 3)
    (directory / victim).unlink()
    put(directory / victim)
    with pytest.raises(CheckpointError, match=re.escape(str(directory / victim))):
        verify_marker(directory)


def test_a_marker_larger_than_memory_is_not_read(tmp_path):
    directory = make_checkpoint(tmp_path, 3)
    os.truncate(directory / MARKER, 1 << 40)
    with pytest.raises(CheckpointError, match=r"COMPLETE\.json: cannot be read .*1099511627776 bytes, wanted at most"):
        verify_marker(directory)


def test_a_missing_directory_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        verify_marker(tmp_path / "step_00000001")


@pytest.mark.parametrize("victim", [MODEL, MARKER])
@pytest.mark.parametrize("moment", ["open", "stat"])
def test_a_file_that_cannot_be_read_is_damage_and_is_passed_over(tmp_path, monkeypatch, victim, moment):
    older, newer = make_checkpoint(tmp_path, 3), make_checkpoint(tmp_path, 5)
    victims = {newer / victim} if moment == "open" else {newer / victim, newer}

    def failing(genuine):
        def call(path, *arguments, **options):
            if path in victims:
                raise OSError(errno.EIO, "Input/output error", str(path))
            return genuine(path, *arguments, **options)

        return call

    for place, name in [(os, "open")] if moment == "open" else [(Path, "is_dir"), (Path, "is_file")]:
        monkeypatch.setattr(place, name, failing(getattr(place, name)))
    chosen, passed_over = newest_checkpoint(tmp_path)
    assert chosen == older
    assert len(passed_over) == 1
    assert "cannot be read ([Errno 5] Input/output error" in passed_over[0]


def refused(directory):
    """What is said of a checkpoint, by the quick look and by the whole one."""
    said = []
    for look in (check_sizes, verify_marker):
        with pytest.raises(CheckpointError) as caught:
            look(directory)
        said.append(str(caught.value))
    assert said[0] == said[1]
    return said[0]


def put_file(path):
    path.write_bytes(b"")


def put_link_to_file(path):
    path.symlink_to(__file__)


def put_link_to_folder(path):
    path.symlink_to(Path(__file__).parent)


@pytest.mark.parametrize("put", [put_file, put_link_to_file, put_link_to_folder, os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("name", ["zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero", "sub/latest"])
def test_what_the_marker_does_not_list_is_refused_by_name(tmp_path, put, name):
    directory = make_checkpoint(tmp_path, 3)
    put(directory / name)
    assert refused(directory).startswith(f"{directory / name}: lies in the checkpoint, and {MARKER} does not list it")
    assert newest_checkpoint(tmp_path)[0] is None


def relist(directory, files):
    marker = json.loads((directory / MARKER).read_text())
    (directory / MARKER).write_text(json.dumps(marker | {"files": files(marker["files"])}))


@pytest.mark.parametrize("name", ["state.json", MODEL, OPTIMIZER])
def test_a_marker_without_a_part_is_refused(tmp_path, name):
    directory = make_checkpoint(tmp_path, 3)
    (directory / name).unlink()
    relist(directory, lambda files: {listed: file for listed, file in files.items() if listed != name})
    assert "lists 0 file(s) " in (said := refused(directory))
    assert ", wanted 1: the checkpoint is not all there" in said


def test_a_marker_of_nothing_is_refused(tmp_path):
    directory = tmp_path / checkpoint_name(3)
    directory.mkdir()
    write_marker(directory)
    assert "lists 0 file(s) state.json, wanted 1" in refused(directory)


@pytest.mark.parametrize(("stage", "world_size"), [(0, 3), (1, 2), (2, 3), (3, 2)])
def test_every_rank_has_its_part(tmp_path, stage, world_size):
    config = {**STATE.config, "train": {**STATE.config["train"], "zero_stage": stage}}
    directory = tmp_path / checkpoint_name(3)
    save_checkpoint(directory, changed(config=config, world_size=world_size))
    verify_marker(directory)
    for part in sorted(directory.glob("*_rank_*.pt")):
        content = part.read_bytes()
        part.unlink()
        (directory / MARKER).unlink()
        write_marker(directory)
        assert "file(s) *_" in refused(directory)
        part.write_bytes(content)


@pytest.mark.parametrize("name", ["../../../etc/hostname", "/etc/hostname", "sub/../../x", ".."])
def test_a_marker_that_lists_other_places_is_refused(tmp_path, name):
    directory = make_checkpoint(tmp_path, 3)
    relist(directory, lambda files: files | {name: {"size_bytes": 1, "sha256": ""}})
    assert f"lists {name!r}, which is not inside of it" in refused(directory)


def test_a_marker_without_end_is_none(tmp_path):
    directory = make_checkpoint(tmp_path, 3)
    (directory / MARKER).write_text("[" * 100_000)
    assert "not a marker" in refused(directory)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("step", value) for value in ("twelve", -5, 1.5, True, None)),
        *(("world_size", value) for value in (0, "2")),
        *(("config", value) for value in ([], None)),
        *(("versions", value) for value in ([],)),
        *(("shards_sha256", value) for value in ([1],)),
        *(("towers_sha256", value) for value in (None,)),
    ],
)
def test_a_value_that_no_state_has_is_named(tmp_path, field, value):
    directory = make_checkpoint(tmp_path, 3)
    (directory / "state.json").write_text(json.dumps(asdict(STATE) | {field: value}))
    with pytest.raises(CheckpointError, match=rf"state\.json: cannot be read \({field} is "):
        read_state(directory)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_marker_of_another_format_is_refused(tmp_path, version):
    directory = make_checkpoint(tmp_path, 3)
    marker = json.loads((directory / MARKER).read_text())
    (directory / MARKER).write_text(json.dumps(marker | {"format_version": version}))
    with pytest.raises(CheckpointError, match=rf"format_version is {version}, wanted 1; use the version"):
        verify_marker(directory)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"shards_sha256": []}', "[" * 100_000, None])
def test_a_state_that_is_none_is_named(tmp_path, content):
    directory = make_checkpoint(tmp_path, 3)
    (directory / "state.json").unlink()
    if content is not None:
        (directory / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"step_00000003/state\.json: cannot be read"):
        read_state(directory)


def test_the_files_of_other_ranks_are_waited_for(tmp_path, monkeypatch):
    for rank in range(2):
        (tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    late = iter([False, False, True])

    def sleep(seconds):
        if next(late):
            (tmp_path / "zero_pp_rank_2_mp_rank_00_optim_states.pt").touch()

    monkeypatch.setattr(time, "sleep", sleep)
    await_files(tmp_path, {"*_optim_states.pt": 3})
    assert next(late, None) is None
    await_files(tmp_path, {})
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint_module, "SHARED_FOLDER_PATIENCE", 0.0)
    with pytest.raises(CheckpointError, match=r"shows 3 files \*_optim_states\.pt after 0 s, wanted 4, one of"):
        await_files(tmp_path, {"*_optim_states.pt": 4})


def test_leftovers_are_moved_aside_and_never_deleted(tmp_path):
    for number in range(2):
        directory = make_checkpoint(tmp_path, 7, marker=False)
        aside = make_room(directory)
        assert aside == tmp_path / f"step_00000007.incomplete-{number}"
        assert (aside / MODEL).is_file()
    assert make_room(tmp_path / checkpoint_name(7)) is None


def changed(**updates):
    return CheckpointState(**{**vars(STATE), **updates})


def test_the_same_run_may_go_on_longer_and_with_another_number_of_ranks(tmp_path):
    config = {
        "run": {"seed": 0, "dir": "elsewhere"},
        "train": {"num_steps": 500, "learning_rate": 0.1, "zero_stage": 1},
    }
    refuse_changes(STATE, changed(config=config, world_size=3, versions={}), tmp_path)


def test_keys_that_came_after_a_checkpoint_was_written_do_not_block_it(tmp_path):
    now = load_config(["configs/smoke.yaml"], ["data.shards=[rooms]"]).model_dump(mode="json")
    model = {**now["model"], "clip": {name: now["model"]["clip"][name] for name in ("name", "pretrained", "dense")}}
    before = {**{name: section for name, section in now.items() if name != "task"}, "model": model}
    refuse_changes(changed(config=before), changed(config=now), tmp_path)
    finer = {**now, "model": {**now["model"], "clip": {**now["model"]["clip"], "output_stride": 8}}}
    with pytest.raises(CheckpointError, match=r"model\.clip\.output_stride: 32 -> 8"):
        refuse_changes(changed(config=before), changed(config=finer), tmp_path)


@pytest.mark.parametrize("places", [(None, "/a/step_00001400"), ("/a/step_00001400", None), ("/a", "/b")])
def test_a_run_does_not_become_one_that_began_elsewhere(tmp_path, places):
    before, after = ({**STATE.config, "model": {"pretrained": place}} for place in places)
    with pytest.raises(CheckpointError, match=r"model\.pretrained: .* -> .*\n.*or start a new run in another run\.dir"):
        refuse_changes(changed(config=before), changed(config=after), tmp_path)


def test_the_towers_weights_may_move_but_not_change(tmp_path):
    before, after = (
        {**STATE.config, "model": {"clip": {"pretrained": place}}} for place in ("/a/clip.pt", "/b/clip.pt")
    )
    refuse_changes(changed(config=before), changed(config=after), tmp_path)
    with pytest.raises(CheckpointError, match="weights of the towers are not the same"):
        refuse_changes(changed(config=before), changed(config=after, towers_sha256="e" * 64), tmp_path)


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        (
            {
                "config": {
                    "run": {"seed": 1, "dir": "a"},
                    "train": {"num_steps": 5, "learning_rate": 0.2, "zero_stage": 1},
                }
            },
            r"run.seed: 0 -> 1\n  train.learning_rate: 0.1 -> 0.2",
        ),
        ({"shards_sha256": ("bb",)}, "the datasets hold other samples"),
        ({"towers_sha256": "e" * 64}, "weights of the towers are not the same"),
        ({"order": 2}, r"its samples came in order 1 and this version has order 2: .* or begin a new run in another"),
        (
            {"config": {**STATE.config, "data": {"shards": [{"url": url, "weight": 2.0} for url in ("a", "b")]}}},
            r"the weights of the mixture were None, now \[2.0, 2.0\]",
        ),
        (
            {
                "config": {
                    "run": {"seed": 0, "dir": "a"},
                    "train": {"num_steps": 5, "learning_rate": 0.1, "zero_stage": 2},
                }
            },
            r"train.zero_stage: 1 -> 2\n(.*\n)*.*keep train.zero_stage=1; the number of ranks may change",
        ),
    ],
)
def test_what_changed_is_named(tmp_path, updates, message):
    with pytest.raises(CheckpointError, match=message):
        refuse_changes(STATE, changed(**updates), tmp_path)
