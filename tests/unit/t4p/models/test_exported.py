"""The exported file: what goes in comes out, and what is not exactly that is refused by name."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shards.errors import CallError
from t4p.config.files import load_config
from t4p.errors import CheckpointError
from t4p.models.decoder2d import Decoder2d
from t4p.models.exported import CONTENT_HASH, load_exported, write_exported
from t4p.models.text4point import build_text4point

CLIP_DIM = 16
SMALL = [
    "data.shards=[none]",
    "model.labels=[chair, table]",
    "model.norm_group_size=4",  # of the run; it does not fit the one process that reads
    "model.unet.stem_channels=8",
    "model.unet.encoder_channels=[8, 12]",
    "model.unet.decoder_channels=[12, 8]",
    "model.decoder2d.hidden_channels=8",
]


@pytest.fixture(scope="module")
def config():
    return load_config(["configs/smoke.yaml"], SMALL)


@pytest.fixture(scope="module")
def parts(config):
    torch.manual_seed(0)
    net = build_text4point(
        config.model.model_copy(update={"norm_group_size": None}), CLIP_DIM, config.model.embed_dim_d
    )
    decoder = config.model.decoder2d
    return torch.nn.ModuleDict(
        {
            "net": net,
            "decoder2d": Decoder2d(CLIP_DIM, decoder.hidden_channels, config.model.embed_dim_d, decoder.upsample),
        }
    )


@pytest.fixture
def path(config, parts, tmp_path):
    temperatures = {"log_logit_scale_e": torch.tensor([2.0]), "log_logit_scale_d": torch.tensor([99.0])}
    path = tmp_path / "model.safetensors"
    embeddings = torch.randn(2, CLIP_DIM, generator=torch.Generator().manual_seed(1))
    weights = {**parts.state_dict(), **temperatures}
    write_exported(
        path, weights, embeddings, config, 120, "f" * 64, {"text4point": "0"}, neutral={"thing": embeddings[0]}
    )
    return path


def test_what_goes_in_comes_out_ready_for_inference(path, parts, config):
    exported = load_exported(path)
    assert exported.config == config
    assert exported.labels == ("chair", "table")
    assert (exported.step, exported.towers_sha256, exported.versions) == (120, "f" * 64, {"text4point": "0"})
    assert exported.logit_scale_e == pytest.approx(7.389, rel=1e-4)
    assert exported.logit_scale == exported.logit_scale_e, "what words are compared with"
    assert {word: tensor.tolist() for word, tensor in exported.neutral.items()} == {
        "thing": exported.label_embeddings[0].tolist()
    }
    assert exported.logit_scale_d == config.loss.logit_scale_max  # as the loss clamped it
    for name in ("net", "decoder2d"):
        part = getattr(exported, name)
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
        for key, value in parts[name].state_dict().items():
            found = part.state_dict()[key]
            assert found.dtype == value.dtype
            assert torch.equal(found, value), key
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    other = path.with_name("any new file")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode, "safetensors would keep it from everybody else"


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_anywhere_in_the_weights_or_the_header_is_refused(path):
    whole = path.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    step = whole.index(b'"step"')
    for position in (header_end, header_end + 12345, len(whole) - 1, whole.index(b"120", step)):
        flip_bit(path, position)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: is not what was written: .*; copy it again"):
            load_exported(path)
        path.write_bytes(whole)
    load_exported(path)


def rewrite(path, tensors, metadata):
    """As version 0.1.0 wrote it: without a hash of what is in it."""
    metadata.pop(CONTENT_HASH)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_are_not_those_of_the_configuration_are_refused(path, change):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if change == "missing":
        del tensors["net.head.weight"]
    elif change == "extra":
        tensors["net.head.weights"] = torch.zeros(1)
    else:
        tensors["net.head.weight"] = torch.zeros(1, 1)
    rewrite(path, tensors, metadata)
    with pytest.raises(CheckpointError, match=r"not those of its configuration(.|\n)*net\.head\.weight"):
        load_exported(path)


@pytest.mark.parametrize(
    ("key", "text", "cause"),
    [
        ("config", "{", "JsonError: no JSON"),
        ("config", '{"model": 3}', "ValidationError"),
        ("config", None, "KeyError: 'config'"),
        ("config", "[" * 100_000, "JsonError: .* more than 32 deep"),
        ("step", '"many"', "ValueError"),
        ("step", "1e999", "JsonError: .* not finite"),
        ("labels", "3", "TypeError"),
        ("towers_sha256", None, "KeyError"),
        ("versions", "[1]", "TypeError"),
        ("label_embeddings", None, "KeyError"),
        ("label_embeddings", torch.zeros(2), "IndexError"),
    ],
)
def test_a_damaged_header_is_named(path, key, text, cause):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    part = tensors if key in tensors else metadata
    part.pop(key) if text is None else part.update({key: text})
    rewrite(path, tensors, metadata)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: its header is damaged .*{cause}.*export it again"):
        load_exported(path)


def test_another_file_is_refused(path, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, other)
    with pytest.raises(
        CheckpointError, match=r"is no export: its format is None; wanted a file that `t4p checkpoint export` wrote"
    ):
        load_exported(other)
    other.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"other\.safetensors: is no export, or one that is cut short; wanted"):
        load_exported(other)
    with pytest.raises(CheckpointError, match=r"nowhere: cannot be read"):
        load_exported(tmp_path / "nowhere")


def test_a_folder_that_takes_no_file_is_named(config, tmp_path):
    with pytest.raises(CallError, match=r"gone/model\.safetensors: wanted the path of a file in a folder that exists"):
        write_exported(tmp_path / "gone" / "model.safetensors", {}, torch.zeros(1, 2), config, 1, "", {})
