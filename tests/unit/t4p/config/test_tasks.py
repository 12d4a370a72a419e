"""Configuration: merging, origins, and every mistake at once."""

import os
from pathlib import Path

import pytest

from t4p.config.files import changed_keys, dump_config, load_config, load_config_of
from t4p.config.packaged import find_packaged
from t4p.config.tasks import PretrainConfig, SemanticConfig
from t4p.errors import ConfigError

MINIMAL = ["run.dir=runs/x", "data.shards=[a]"]


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_files_merge_left_to_right_and_overrides_come_last(tmp_path):
    first = write(
        tmp_path, "a.yaml", "train: {num_steps: 10, learning_rate: 0.1}\nrun: {dir: a}\ndata: {shards: [x]}\n"
    )
    second = write(tmp_path, "b.yaml", "train: {num_steps: 20}\n")
    config = load_config([first, second], ["run.dir=c"])
    assert (config.train.num_steps, config.train.learning_rate, config.run.dir) == (20, 0.1, "c")


def test_a_float_without_a_dot_is_a_float():
    assert load_config([], [*MINIMAL, "train.learning_rate=1e-4"]).train.learning_rate == 1e-4


def test_three_mistakes_are_reported_at_once_with_key_value_and_file(tmp_path):
    path = write(
        tmp_path,
        "scannet.yaml",
        "run: {dir: a}\ndata: {shards: [x]}\nmodel: {voxel_size: -0.02, voxel_sise: 1}\n"
        "train: {warmup_steps: 2000, num_steps: 1000}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    message = str(caught.value)
    assert message.startswith("3 problem(s) in the configuration")
    assert "model.voxel_size: wanted more than 0, got -0.02 [scannet.yaml]" in message
    assert "model.voxel_sise: unknown key, did you mean 'voxel_size'? [scannet.yaml]" in message
    assert (
        "train: warmup_steps (2000) must be smaller than num_steps (1000); set train.warmup_steps=1 [scannet.yaml]"
        in message
    )


def test_the_origin_of_a_problem_is_the_last_to_set_the_key(tmp_path):
    path = write(tmp_path, "a.yaml", "train: {zero_stage: 1}\n")
    with pytest.raises(ConfigError, match=r"train.zero_stage: .* got 7 \[command line\]"):
        load_config([path], [*MINIMAL, "train.zero_stage=7"])


def test_a_key_that_stands_twice_in_a_file_is_an_error(tmp_path):
    path = write(tmp_path, "a.yaml", "train:\n  num_steps: 1\n  num_steps: 2\n")
    with pytest.raises(ConfigError, match="'num_steps' stands here twice"):
        load_config([path], MINIMAL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "expected sections"),
        ("a: [", "not valid YAML"),
        ("\xff", "cannot be read|not valid|expected sections"),
        (
            "run:\n  dir: {{ x }}\n",
            r"not valid YAML: \{'x': None\} stands where a key is wanted(.|\n)*line 2, column 9",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as caught:
        load_config([path], MINIMAL)
    assert "bad.yaml" in str(caught.value)


def test_a_missing_section_says_how_to_set_it():
    with pytest.raises(ConfigError, match=r"data: missing; set its keys in a file or as data\.KEY=VALUE"):
        load_config([], ["run.dir=a"])


def test_an_override_with_a_bracket_too_many_is_refused():
    with pytest.raises(ConfigError, match=r"^'run.dir=\{\{ x \}\}': .* stands where a key is wanted"):
        load_config([], ["run.dir={{ x }}", "data.shards=[a]"])


def test_a_pre_training_without_any_loss_is_refused():
    load_config([], [*MINIMAL, "loss.weight_e=0"])
    with pytest.raises(ConfigError, match="weight_e and weight_d are both 0: there would be no loss"):
        load_config([], [*MINIMAL, "loss.weight_e=0", "loss.weight_d=0"])


@pytest.mark.parametrize("run_dir", ["s3://bucket/run", "gs://bucket/run"])
def test_a_run_folder_on_object_storage_is_refused(run_dir):
    with pytest.raises(ConfigError, match=f"run.dir: {run_dir}: .* not supported yet; .* that all ranks share"):
        load_config([], [f"run.dir={run_dir}", "data.shards=[a]"])


@pytest.mark.parametrize("override", ["train", "train.num_steps", "=3", "num_steps=3", "train..x=1"])
def test_an_override_without_section_or_value_is_refused(override):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config([], [override])


def test_a_dumped_config_loads_to_an_equal_one(tmp_path):
    config = load_config([], [*MINIMAL, "data.augment.scale=0.25", "model.labels=[chair, table]"])
    path = write(tmp_path, "config.yaml", dump_config(config))
    assert load_config([path]) == config


def test_labels_may_be_a_file_of_lines(tmp_path):
    path = write(tmp_path, "labels.txt", "chair\n\n potted plant \n")
    assert load_config([], [*MINIMAL, f"model.labels={path}"]).model.labels == ("chair", "potted plant")


def test_labels_that_are_no_text_file_are_refused(tmp_path):
    latin = tmp_path / "labels.txt"
    latin.write_bytes("caf\u00e9 table\n".encode("latin-1"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    no_file = "no file but a pipe, device or folder"
    causes = ((tmp_path, no_file), (pipe, no_file), (Path("/dev/zero"), no_file), (latin, "can't decode byte"))
    for path, cause in causes:
        with pytest.raises(ConfigError, match=f"model.labels: {path} cannot be read .*{cause}.*one label per line"):
            load_config([], [*MINIMAL, f"model.labels={path}"])


@pytest.mark.parametrize(("labels", "message"), [("[]", "empty"), ("[a, b, a]", "named twice: a")])
def test_a_useless_label_list_is_refused(labels, message):
    with pytest.raises(ConfigError, match=message):
        load_config([], [*MINIMAL, f"model.labels={labels}"])


def test_random_weights_are_not_frozen():
    call = ["run.dir=a", "data.shards=[a]", "model.frozen=[encoder]"]
    with pytest.raises(ConfigError, match=r"without pretrained it would keep random weights; name a pre-training"):
        load_config_of(SemanticConfig, [], call)
    assert load_config_of(SemanticConfig, [], [*call, "model.pretrained=b"]).model.frozen == ("encoder",)


def test_frozen_parts_are_a_set():
    call = ["run.dir=a", "data.shards=[a]", "model.pretrained=b", "model.frozen=[decoder, encoder, decoder]"]
    assert load_config_of(SemanticConfig, [], call).model.frozen == ("decoder", "encoder")


def test_the_tree_is_frozen():
    config = load_config([], MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.train.num_steps = 3


def test_packaged_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_packaged("configs/smoke.yaml").is_file()
    with pytest.raises(ConfigError, match="no such file"):
        find_packaged("configs/nothing.yaml")


@pytest.mark.parametrize("name", ["smoke.yaml", "pretrain/scannet.yaml"])
def test_every_shipped_config_is_whole(name):
    config = load_config([f"configs/{name}"], ["data.shards=[a]"])
    assert isinstance(config, PretrainConfig)


def test_smoke_shrinks_a_full_size_config():
    config = load_config(["configs/pretrain/scannet.yaml", "configs/smoke.yaml"])
    assert config.train.num_steps < 1000
    assert config.model.clip.pretrained == "random"


def test_changed_keys_names_nested_differences_only():
    old = {"a": {"b": 1, "c": [1]}, "d": 2}
    new = {"a": {"b": 1, "c": [2]}, "d": 2, "e": 3}
    assert list(map(str, changed_keys(old, new))) == ["a.c: [1] -> [2]", "e: None -> 3"]
