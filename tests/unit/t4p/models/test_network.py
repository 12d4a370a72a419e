"""`t4p.network`: the network of a file, a mapping or a configuration, which are one and the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from t4p.config.files import find_packaged, load_config
from t4p.errors import ConfigError
from t4p.models.network import network

ROOT = Path(__file__).resolve().parents[4]
OLDER = ROOT / "tests" / "data" / "older"


def shapes(net: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items()}


def test_a_file_a_mapping_and_a_configuration_give_one_network() -> None:
    file = "configs/smoke.yaml"
    tree = yaml.safe_load(find_packaged(file).read_text())
    config = load_config([file], ["data.shards=[unused]", "run.dir=unused"])
    nets = []
    for given in (file, tree, config):
        torch.manual_seed(3)
        nets.append(network(given))
    for net in nets[1:]:
        for (name, value), (_, wanted) in zip(net.state_dict().items(), nets[0].state_dict().items(), strict=True):
            assert torch.equal(value, wanted), name
    assert nets[0].training
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 5, 5, 5]], dtype=torch.int32)
    expanded, decoded = nets[0].eval()(coords, torch.rand(3, 3), torch.rand(4, 64))
    assert (expanded.shape[1], decoded.shape) == (64, (3, config.model.embed_dim_d))


@pytest.mark.parametrize("task", ["pretrain", "semantic"])
def test_the_network_of_a_run_has_the_shapes_of_its_export(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from t4p.models.exported import load_exported_network

    monkeypatch.chdir(ROOT)  # its CLIP model is a path
    exported = load_exported_network(OLDER / f"{task}.safetensors")
    assert shapes(network(OLDER / "runs" / task / "config.yaml")) == shapes(exported.net)
    assert shapes(network(exported.config)) == shapes(exported.net)


def test_labels_in_a_file_give_the_head_a_channel_each(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("chair\ntable\ndoor\n")
    tree = yaml.safe_load(find_packaged("configs/smoke.yaml").read_text())
    model = {name: tree["model"][name] for name in ("unet", "clip", "text_query")}
    net = network({"task": "semantic", "model": {**model, "labels": str(tmp_path / "labels.txt")}})
    assert net.head.out_features == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model": {"voxel_size": -1, "voxels": 1}},
            r"2 problem[^!]*model.voxel_size: [^!]*model.voxels: unknown",
        ),
        ({"model": {"unet": {"plan": "UNet"}, "clip": {"name": "configs/clip/tiny-rn.json"}}}, "known: Res16UNet"),
        ({"task": "juggle"}, "task is juggle; known: pretrain, semantic, instance, detection"),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_what_describes_no_network_is_refused(config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network(config)
