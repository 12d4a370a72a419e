import json
from pathlib import Path

import open_clip
import pytest
import torch
from saved_checkpoint import Touches
from torch import nn
from torch.nn import functional as F

from t4p.errors import ClipError
from t4p.models.clip import load_towers

CONFIGS = Path(__file__).parents[4] / "configs" / "clip"
TINY_RN = str(CONFIGS / "tiny-rn.json")
TINY_VIT = str(CONFIGS / "tiny-vit16.json")
TINY = pytest.mark.parametrize("name", [TINY_RN, TINY_VIT], ids=["resnet", "vit"])


def scramble(module, seed=0):
    """Random biases, norms, scales and statistics: at their initial 0 and 1, a forgotten one would not be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and "token_embedding" not in key:
                tensor += 0.1 * torch.rand(tensor.shape, generator=generator)


def load_and_scramble(name, **options):
    towers = load_towers(name, "random", **options)
    scramble(towers.model)
    return towers


def random_images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_config(path, base=TINY_VIT, *, vision=None, **changes):
    config = json.loads(Path(base).read_text()) | changes
    config["vision_cfg"] |= vision or {}
    path.write_text(json.dumps(config))
    return str(path)


def attend(query, keys, values, num_heads):
    """Plain softmax attention: query (F, Q, C), keys and values (F, L, C)."""
    query, keys, values = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, keys, values))
    weights = (query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return (weights @ values).transpose(1, 2).flatten(2)


def pool_by_hand(towers, images):
    """The global embedding from our own feature map or tokens, and a plain attention."""
    visual = towers.model.visual
    if hasattr(visual, "attnpool"):
        pool = visual.attnpool
        cells = towers._dense.feature_map(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], 1) + pool.positional_embedding
        pooled = attend(pool.q_proj(tokens[:, :1]), pool.k_proj(tokens), pool.v_proj(tokens), pool.num_heads)
        return pool.c_proj(pooled)[:, 0]
    tokens = towers._dense.tokens(images)
    block = visual.transformer.resblocks[-1]
    query, key, value = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    x = tokens + block.attn.out_proj(attend(query, key, value, block.attn.num_heads))
    x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x[:, 0]) @ visual.proj


@TINY
def test_global_embedding_from_our_own_pooling_equals_encode_image(name):
    towers = load_towers(name, "random")
    scramble(towers.model)
    images = random_images(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            pool_by_hand(towers, images), towers.model.encode_image(images), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("name", "grid", "embed_dim"), [("RN50", (15, 20), 1024), ("ViT-B-32", (15, 20), 512)])
def test_real_architectures_pool_to_encode_image_and_give_a_cell_per_32_pixels(name, grid, embed_dim):
    towers = load_towers(name, "random")
    images = random_images(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            pool_by_hand(towers, images), towers.model.encode_image(images), rtol=1e-5, atol=1e-5
        )
    features = towers.dense_features(random_images(1, 3, 480, 640))
    assert features.shape == (1, embed_dim, *grid)
    assert features.dtype == torch.float32
    assert towers.embed_dim == embed_dim


def test_vit_b_16_gives_a_cell_per_16_pixels(tmp_path):
    config = open_clip.get_model_config("ViT-B-16")
    config["vision_cfg"]["layers"] = 2  # depth changes no shape, and 12 layers take 3 s
    config["text_cfg"] |= {"layers": 1, "width": 64}
    path = tmp_path / "vit-b-16-shallow.json"
    path.write_text(json.dumps(config))
    towers = load_towers(str(path), "random")
    assert towers.grid_size(480, 640) == (30, 40)
    assert towers.dense_features(random_images(1, 3, 480, 640)).shape == (1, 512, 30, 40)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_resnet_value_path_of_a_constant_feature_map_equals_the_pooled_output(output_stride):
    towers = load_towers(TINY_RN, "random", output_stride=output_stride)
    scramble(towers.model)
    pool = towers.model.visual.attnpool
    pool.positional_embedding.zero_()
    constant = random_images(2, 512, 1, 1).expand(2, 512, 7, 7)
    with torch.no_grad():
        dense = towers._dense.project(constant)
        torch.testing.assert_close(dense, pool(constant)[:, :, None, None].expand_as(dense), rtol=1e-5, atol=1e-5)


def test_output_stride_32_runs_the_tower_as_open_clip_does():
    towers = load_towers(TINY_RN, "random", output_stride=32)
    scramble(towers.model)
    images = random_images(2, 3, 64, 96)
    visual = towers.model.visual
    with torch.no_grad():
        expected = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
        assert torch.equal(towers.dense_features(images), towers._dense.project(expected))
    assert torch.equal(load_and_scramble(TINY_RN).dense_features(images), towers.dense_features(images))


@pytest.mark.parametrize(("output_stride", "grid"), [(16, (14, 14)), (8, (28, 28))])
def test_a_finer_output_stride_changes_the_dense_reading_and_nothing_else(output_stride, grid):
    fine, plain = load_and_scramble(TINY_RN, output_stride=output_stride), load_and_scramble(TINY_RN)
    images = random_images(2, 3, 224, 224)
    assert fine.cell_size == output_stride
    assert fine.grid_size(224, 224) == grid
    for _ in range(2):  # before and after the finer reading
        with torch.no_grad():
            assert torch.equal(fine.model.encode_image(images), plain.model.encode_image(images))
        assert fine.dense_features(images).shape == (2, 64, *grid)
    assert list(fine.model.state_dict()) == list(plain.model.state_dict())
    with pytest.raises(ClipError, match=f"multiples of {output_stride} pixels; resize it to"):
        fine.dense_features(random_images(1, 3, output_stride + 1, 224))


@pytest.mark.parametrize("output_stride", [16, 8])
def test_far_from_the_borders_a_constant_image_reads_the_same_at_every_output_stride(output_stride):
    # An average pooling of constants is that constant: what is left to differ is weights, norms and their order.
    fine, plain = load_and_scramble(TINY_RN, output_stride=output_stride), load_and_scramble(TINY_RN)
    image = random_images(1, 3, 1, 1).expand(1, 3, 512, 512)
    middle = fine.dense_features(image)[:, :, 256 // output_stride, 256 // output_stride]
    torch.testing.assert_close(middle, plain.dense_features(image)[:, :, 8, 8], rtol=1e-4, atol=1e-5)


VIT_VARIANTS = {
    "plain": {},
    "no ln_pre, sin-cos positions, mean pooling": {
        "no_ln_pre": True,
        "pos_embed_type": "sin_cos_2d",
        "pool_type": "avg",
        "final_ln_after_pool": True,
    },
    "layer scale, patch dropout": {"ls_init_value": 0.1, "patch_dropout": 0.5},
    "custom blocks": {"scale_attn_inner": True, "scale_attn": True, "scale_fc": True, "qk_norm": True},
    "scaled heads": {"scale_heads": True, "ls_init_value": 0.1},
}


@pytest.mark.parametrize("dense", ["value", "value-residual"])
@pytest.mark.parametrize("variant", VIT_VARIANTS)
def test_vit_value_path_of_constant_tokens_equals_the_pooled_output(tmp_path, variant, dense):
    towers = load_towers(write_config(tmp_path / "vit.json", vision=VIT_VARIANTS[variant]), "random", dense=dense)
    visual = towers.model.visual
    scramble(visual)
    constant = random_images(2, 1, 64).expand(2, 10, 64)
    block = visual.transformer.resblocks[-1]
    with torch.no_grad():
        if dense == "value-residual":
            expected = visual._pool(block(constant))[0] @ visual.proj
        else:
            attended = (
                block.attention(block.ln_1(constant))
                if hasattr(block, "attention")
                else block.ln_attn(block.attn(block.ln_1(constant)))
            )
            expected = visual._pool(block.ls_1(attended))[0] @ visual.proj
        cells = towers._dense.project(constant)
    torch.testing.assert_close(cells, expected[:, None].expand_as(cells), rtol=1e-4, atol=1e-5)


def test_resized_positions_equal_open_clips_own_resizing_on_loading(tmp_path):
    small = load_towers(TINY_VIT, "random", dense="value-residual")
    torch.save(small.model.state_dict(), tmp_path / "weights.pt")
    wide_config = write_config(tmp_path / "wide.json", vision={"image_size": [96, 160]})
    wide = load_towers(wide_config, str(tmp_path / "weights.pt"), dense="value-residual")
    assert tuple(wide.model.visual.grid_size) == (6, 10)
    images = random_images(2, 3, 96, 160)
    torch.testing.assert_close(small.dense_features(images), wide.dense_features(images), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(pool_by_hand(small, images), wide.model.encode_image(images), rtol=1e-5, atol=1e-5)


@TINY
def test_dense_cells_lie_where_their_pixels_lie(name):
    towers = load_towers(name, "random")
    dark = torch.zeros(1, 3, 256, 384)
    spot = dark.clone()
    row, column = 5, 2
    spot[:, :, row * 32 + 8 : row * 32 + 24, column * 32 + 8 : column * 32 + 24] = 3.0
    change = (towers.dense_features(spot) - towers.dense_features(dark)).norm(dim=1)[0]
    cells_per_32 = 32 // towers.cell_size
    found = divmod(int(change.argmax()), change.shape[1])
    assert (found[0] // cells_per_32, found[1] // cells_per_32) == (row, column)


@TINY
def test_towers_stay_frozen_inside_a_module_that_trains(name):
    towers = load_towers(name, "random")
    before = {key: value.clone() for key, value in towers.model.state_dict().items()}
    surrounding = nn.ModuleDict({"towers": towers, "trained": nn.Conv2d(64, 8, 1)}).train()
    features = towers.dense_features(random_images(2, 3, 64, 96))
    surrounding["trained"](features).sum().backward()  # the features can enter a graph
    assert surrounding["trained"].weight.grad is not None
    assert not features.requires_grad
    assert not any(module.training for module in towers.modules())
    assert not any(parameter.requires_grad for parameter in towers.parameters())
    after = towers.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_gradient_passes_through_the_text_tower_but_not_into_it():
    towers = load_towers(TINY_VIT, "random")
    prompt = torch.zeros(1, 16, 32, requires_grad=True)
    towers.model.transformer(prompt, attn_mask=towers.model.attn_mask).square().sum().backward()
    assert prompt.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in towers.parameters())


def test_no_frames_give_no_features():
    assert load_towers(TINY_VIT, "random").dense_features(torch.zeros(0, 3, 64, 32)).shape == (0, 64, 4, 2)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = load_towers(TINY_VIT, "random", seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = load_towers(TINY_VIT, "random", seed=1), load_towers(TINY_VIT, "random", seed=2)
    assert first.sha256 == again.sha256 != other.sha256
    images = random_images(1, 3, 64, 64)
    assert torch.equal(first.dense_features(images), again.dense_features(images))


def test_sha256_sees_a_changed_batch_statistic(tmp_path):
    towers = load_towers(TINY_RN, "random")
    weights = towers.model.state_dict()
    weights["visual.layer4.0.bn3.running_mean"][3] += 1e-3
    torch.save(weights, tmp_path / "weights.pt")
    assert load_towers(TINY_RN, str(tmp_path / "weights.pt")).sha256 != towers.sha256


@pytest.mark.parametrize("file_name", ["weights.pt", "weights.safetensors"])
def test_weights_load_from_a_path_and_into_a_custom_text_model(tmp_path, file_name):
    source = load_towers(TINY_VIT, "random", seed=3)
    path = tmp_path / file_name
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(source.model.state_dict(), path)
    else:
        torch.save({"state_dict": source.model.state_dict()}, path)
    same = load_towers(TINY_VIT, str(path))
    assert same.sha256 == source.sha256
    assert same.pretrained == str(path)
    custom = load_towers(write_config(tmp_path / "custom.json", custom_text=True), str(path))
    assert hasattr(custom.model, "text")
    labels = ["chair", "night stand"]
    torch.testing.assert_close(custom.encode_labels(labels), source.encode_labels(labels))
    images = random_images(1, 3, 64, 64)
    torch.testing.assert_close(custom.dense_features(images), source.dense_features(images))


def test_a_downloaded_models_configuration_brings_its_colour_statistics(tmp_path):
    config = {
        "model_cfg": json.loads(Path(TINY_VIT).read_text()),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps(config))
    towers = load_towers(str(path), "random")
    assert towers.image_mean == (0.5, 0.5, 0.5)
    assert towers.image_std == (0.25, 0.25, 0.25)
    assert load_towers(TINY_VIT, "random").image_mean == open_clip.OPENAI_DATASET_MEAN


def test_labels_are_prompted_unit_norm_and_independent_of_batching_and_autocast():
    towers = load_towers(TINY_VIT, "random")
    labels = [f"thing {index}" for index in range(300)]
    embeddings = towers.encode_labels(labels)
    assert embeddings.shape == (300, 64)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(300))
    tokens = open_clip.SimpleTokenizer(context_length=16)([f"point cloud of a {label}" for label in labels[290:]])
    with torch.no_grad():
        expected = towers.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(embeddings[290:], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(towers.encode_labels(labels), embeddings)
    assert not torch.allclose(towers.encode_labels(["thing 0"], "a photo of a {}"), embeddings[:1])
    assert towers.encode_labels([]).shape == (0, 64)


def test_images_and_prompts_that_do_not_fit_are_refused():
    towers = load_towers(TINY_RN, "random")
    with pytest.raises(ClipError, match=r"image of 470x640 .* multiples of 32 pixels; resize it to 480x640"):
        towers.dense_features(torch.zeros(1, 3, 470, 640))
    with pytest.raises(ClipError, match=r"shape \(3, 480, 640\); wanted \(frames, 3, height, width\)"):
        towers.dense_features(torch.zeros(3, 480, 640))
    with pytest.raises(ClipError, match=r"it must contain {} exactly once"):
        towers.encode_labels(["chair"], "a photo")
    with pytest.raises(ClipError, match=r"has \d+ tokens and the text tower of .* reads 16"):
        towers.encode_labels(["very " * 20 + "long chair"])


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        (
            "RN51",
            "random",
            r"'RN51', which open_clip does not know; nearest: RN50, .*path of a model configuration",
        ),
        ("zzz", "random", "for example RN50 or ViT-B-16"),
        ("hf-hub:some/model", "random", "open_clip_config.json of a downloaded model"),
        ("absent.json", "random", "absent.json: No such file or directory; give an existing model configuration"),
        ("RN50", "opena", "'opena', which is no tag of RN50; its tags: openai, yfcc15m, cc12m"),
        ("RN50", "absent.pt", "'absent.pt', and that file is not there; give the path of a weights file of RN50"),
        ("RN50", "./", "that file is a folder"),
        (TINY_RN, "openai", "has no pretrained tags; give the path of a weights file"),
        ("ViT-B-16-SigLIP", "random", "its image tower is timm's vit_base_patch16_siglip_224"),
        ("coca_ViT-B-32", "random", "attentional pooling; use a plain CLIP"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_with_the_way_out(name, pretrained, message):
    with pytest.raises(ClipError, match=message):
        load_towers(name, pretrained)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"attentional_pool": True}, "no dense reading for a ViT tower with attentional pooling"),
        ({"pool_type": "none"}, "pool_type 'none'"),
        ({"scaled_cosine_attn": True}, "scaled cosine attention"),
        ({"patch_size": [16, 32]}, "patches of 16x32 pixels"),
        ({"layers": 0}, "no blocks"),
        ({"depth": 3}, "cannot build this model: TypeError: .*depth"),
    ],
)
def test_a_vit_without_dense_reading_is_refused(tmp_path, vision, message):
    with pytest.raises(ClipError, match=message):
        load_towers(write_config(tmp_path / "vit.json", vision=vision), "random")


def test_a_reading_that_does_not_exist_for_the_tower_is_refused():
    with pytest.raises(ClipError, match="whose attention pool has no residual; use 'value'"):
        load_towers(TINY_RN, "random", dense="value-residual")
    with pytest.raises(ClipError, match="'values'; choose one of value, value-residual"):
        load_towers(TINY_VIT, "random", dense="values")
    with pytest.raises(ClipError, match=r"output stride 8 is for ResNet towers.* a ViT, whose cells .* of 16 pixels"):
        load_towers(TINY_VIT, "random", output_stride=8)
    with pytest.raises(ClipError, match="output stride is 4; choose one of 32, 16, 8"):
        load_towers(TINY_RN, "random", output_stride=4)


def test_files_that_are_not_what_they_should_be_are_refused(tmp_path):
    (tmp_path / "text.json").write_text("not json")
    with pytest.raises(ClipError, match=r"text.json is not JSON"):
        load_towers(str(tmp_path / "text.json"), "random")
    (tmp_path / "other.json").write_text('{"embed_dim": 3}')
    with pytest.raises(
        ClipError, match=r"other.json is not an open_clip model configuration: it has no vision_cfg, text_cfg"
    ):
        load_towers(str(tmp_path / "other.json"), "random")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 cut in the middle")
    with pytest.raises(ClipError, match=r"broken.pt does not hold weights of .*tiny-vit16.json"):
        load_towers(TINY_VIT, str(tmp_path / "broken.pt"))
    torch.save({"state_dict": Touches(tmp_path / "proof")}, tmp_path / "evil.pt")
    with pytest.raises(ClipError, match=r"evil.pt holds more than weights.*; nothing of it was run"):
        load_towers(TINY_VIT, str(tmp_path / "evil.pt"))
    assert not (tmp_path / "proof").exists()
    torch.save(load_towers(TINY_RN, "random").model.state_dict(), tmp_path / "rn.pt")
    with pytest.raises(ClipError, match=r"rn.pt does not hold weights of .*Missing key"):
        load_towers(TINY_VIT, str(tmp_path / "rn.pt"))


def test_a_failed_download_says_to_give_a_path(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ClipError, match=r"'openai' of RN50 could not be downloaded .*path in model.clip.pretrained"):
        load_towers("RN50", "openai")


def test_a_tag_switches_on_the_activation_it_was_trained_with(tmp_path, monkeypatch):
    shallow = open_clip.get_model_config("RN50")
    shallow["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 8}
    shallow["text_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: shallow)
    weights = tmp_path / "weights.pt"
    torch.save(open_clip.model.CLIP(**shallow).state_dict(), weights)
    # The download is the one thing replaced: the file is where it would have landed.
    monkeypatch.setattr("t4p.models.clip.download_pretrained", lambda tag: str(weights))
    towers = load_towers("RN50", "openai")
    assert "QuickGELU" in repr(towers.model.transformer)
    assert "QuickGELU" not in repr(load_towers("RN50", "random").model.transformer)
