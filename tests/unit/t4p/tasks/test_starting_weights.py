"""A fine-tuning starts from all of a pre-training's network but its head, or says which key keeps it from doing so."""

import pytest
import torch
from saved_checkpoint import save_checkpoint
from small_model import TINY_NETWORK

from t4p.config.files import load_config, load_config_of
from t4p.config.tasks import DetectionConfig, SemanticConfig
from t4p.errors import CheckpointError, ConfigError
from t4p.models.exported import write_exported
from t4p.models.text4point import build_text4point
from t4p.runs.checkpoint import CheckpointState, checkpoint_name
from t4p.tasks.starting_weights import (
    StartingWeights,
    load_starting_weights,
    name_beginning,
    read_starting_weights,
)

CLIP_DIM = 16
NETWORK = [
    "data.shards=[none]",
    *TINY_NETWORK,
]
TOWERS = "f" * 64


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The export of a pre-training with 20 labels, and its network."""
    config = load_config(["configs/smoke.yaml"], [*NETWORK, "model.decoder2d.hidden_channels=8"])
    torch.manual_seed(1)
    net = build_text4point(config.model, CLIP_DIM, config.model.embed_dim_d)
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    write_exported(path, weights, torch.zeros(20, CLIP_DIM), config, 7, TOWERS, {})
    return path, net


def network_of(*overrides):
    config = load_config_of(SemanticConfig, [], ["run.dir=unused", "model.voxel_size=0.04", *NETWORK, *overrides])
    torch.manual_seed(2)
    return build_text4point(config.model, CLIP_DIM, 5), config


@pytest.mark.parametrize("frozen", [(), ("encoder",), ("encoder", "decoder")])
def test_everything_but_the_head_is_taken_over(exported, frozen):
    path, pretrained = exported
    net, config = network_of()
    net.freeze(frozen)
    head = net.head.weight.clone()
    load_starting_weights(net, read_starting_weights(path), config, TOWERS)
    for name, value in net.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(value, pretrained.state_dict()[name], rtol=0, atol=0)
    torch.testing.assert_close(net.head.weight, head, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.unet.encoder_channels=[8, 16]", r"model\.unet\.encoder_channels: \[8, 12\] -> \[8, 16\]"),
        ("model.point_features=[one, position]", r"model\.point_features: \['color'\] -> \['one', 'position'\]"),
        ("model.norm=layer", r"model\.norm: 'sync_batch' -> 'layer'"),
        ("model.text_query.mlp_ratio=4", r"model\.text_query\.mlp_ratio: 2\.0 -> 4\.0"),
    ],
)
def test_a_network_of_another_shape_is_refused_by_key(exported, override, key):
    net, config = network_of(override)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"weight\(s\) do not fit, the first is .*\n  {key}$"):
        load_starting_weights(net, read_starting_weights(exported[0]), config, TOWERS)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.point_features=[position]", r"model\.point_features: \['color'\] -> \['position'\]"),
        ("model.text_query.num_heads=2", r"model\.text_query\.num_heads: 4 -> 2"),
    ],
)
def test_weights_of_the_same_shape_that_mean_something_else_are_refused(exported, override, key):
    net, config = network_of(override)
    with pytest.raises(ConfigError, match=rf"of this shape that mean something else; .*\n  {key}$"):
        load_starting_weights(net, read_starting_weights(exported[0]), config, TOWERS)


def test_what_may_change_is_told(exported):
    net, config = network_of("model.voxel_size=0.05", "model.text_query.beta=0.5", "model.labels=[a, b, c, d, e]")
    told = load_starting_weights(net, read_starting_weights(exported[0]), config, TOWERS)
    assert told == ("model.voxel_size: 0.04 -> 0.05", "model.text_query.beta: 1.0 -> 0.5")


def test_other_axes_are_told_and_refused_where_a_place_is_a_feature(exported, tmp_path):
    net, config = network_of("data.frame=world")
    assert load_starting_weights(net, read_starting_weights(exported[0]), config, TOWERS) == (
        "data.frame: 'camera' -> 'world'",
    )
    with_height = ["model.point_features=[one, height]"]
    before = load_config(["configs/smoke.yaml"], [*NETWORK, "model.decoder2d.hidden_channels=8", *with_height])
    weights = build_text4point(before.model, CLIP_DIM, before.model.embed_dim_d).state_dict()
    path = tmp_path / "model.safetensors"
    named = {f"net.{name}": value for name, value in weights.items()}
    write_exported(path, named, torch.zeros(20, CLIP_DIM), before, 7, TOWERS, {})
    net, config = network_of("data.frame=world", *with_height)
    with pytest.raises(ConfigError, match=r"that mean something else; .*\n  data\.frame: 'camera' -> 'world'$"):
        load_starting_weights(net, read_starting_weights(path), config, TOWERS)


def test_the_words_of_other_towers_are_refused(exported):
    net, config = network_of()
    with pytest.raises(ConfigError, match=r"CLIP towers of sha256 ffffffffffff, and model\.clip gives towers of eeee"):
        load_starting_weights(net, read_starting_weights(exported[0]), config, "e" * 64)


def test_what_is_no_pre_training_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: cannot be read"):
        read_starting_weights(tmp_path / "nowhere")
    (tmp_path / "step_00000001").mkdir()
    with pytest.raises(CheckpointError, match=r"no COMPLETE\.json, so it was not written to its end"):
        read_starting_weights(tmp_path / "step_00000001")


def test_a_run_folder_is_named_by_its_newest_checkpoint_and_later_by_the_one_that_the_run_began_from(tmp_path):
    def save(run_dir, step, **model):
        state = CheckpointState(step, 1, {"train": {"zero_stage": 1}, "model": model}, (), "", {})
        return save_checkpoint(run_dir / "checkpoints" / checkpoint_name(step), state)

    said = []
    source, own = tmp_path / "source", tmp_path / "own"
    config = network_of(f"model.pretrained={source}", f"run.dir={own}")[1]
    first = save(source, 5)
    assert name_beginning(config, said.append).model.pretrained == str(first)
    assert said == [f"{source}: a run folder, of which step_00000005 is taken, its newest whole checkpoint"]
    save(own, 1, pretrained=str(first))
    second = save(source, 10)
    assert name_beginning(config, said.append).model.pretrained == str(first)
    elsewhere = network_of(f"model.pretrained={source}", f"run.dir={tmp_path / 'other'}")[1]
    assert name_beginning(elsewhere, said.append).model.pretrained == str(second)
    named = network_of(f"model.pretrained={first}", f"run.dir={tmp_path / 'other'}")[1]
    assert name_beginning(named, said.append) == named
    assert len(said) == 2


def test_decoder_stages_that_a_detection_left_alone_are_told_and_refused_where_they_are_random(tmp_path):
    """It reads the first stage of the decoder alone."""
    net, config = network_of()
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    before = [
        load_config_of(DetectionConfig, [], ["run.dir=unused", "model.voxel_size=0.04", *NETWORK, *overrides])
        for overrides in ([], ["model.pretrained=first.safetensors"])
    ]
    scratch, tuned = (
        StartingWeights({name.removeprefix("net."): value for name, value in weights.items()}, dumped, TOWERS)
        for dumped in (each.model_dump(mode="json") for each in before)
    )
    (told,) = load_starting_weights(net, tuned, config, TOWERS)
    assert told.endswith("alone, so the finer ones rested there, with the weights of first.safetensors")
    with pytest.raises(ConfigError, match=r"finer decoder stages have random weights .*; name a pre-training, or a"):
        load_starting_weights(net, scratch, config, TOWERS)
    boxes = load_config_of(DetectionConfig, [], ["run.dir=unused", "model.voxel_size=0.04", *NETWORK])
    assert load_starting_weights(net, scratch, boxes, TOWERS) == ()
