"""The main job on real input: 7-Scenes frames on a real S3 server, through Ray, scored on frames never trained on."""

import json
import os
import subprocess
import sys
from statistics import fmean

import pytest

from shards.packing.pack import pack
from shards.reader import DatasetReader

pytestmark = [pytest.mark.slow, pytest.mark.ray]

NUM_FRAMES, NUM_TRAIN = 100, 80
# Top-1 among 256, chance 0.004. Both sides of L_d are trained. The image side of L_e is a frozen tower with random
# weights, which cannot carry 0.2 here: benchmarks/LOG.md, 2026-11-22, says why and what was tried.
WANTED = {"retrieval_e": 0.06, "retrieval_d": 0.2}
# The features of a random tower depend on which way is up in the image and on how large things appear, which no
# network can know of points that were turned and mirrored at random; with real CLIP weights this matters less. Those of
# the smoke configuration's ViT, read by its values, are of one patch alone: a network of one stride sees enough.
SETTINGS = [
    "train.num_steps=300",
    "train.global_batch_size=1",
    "train.learning_rate=4e-3",
    "train.warmup_steps=10",
    "train.checkpoint_every=300",
    "data.image_size=[672, 896]",
    "data.pixel_stride=3",
    "model.voxel_size=0.025",
    "model.embed_dim_d=64",
    "model.unet.num_strides=1",
    "model.unet.stem_channels=24",
    "model.unet.encoder_channels=[64]",
    "model.unet.decoder_channels=[32]",
    "model.decoder2d.upsample=2",
    "loss.num_pairs_e=1024",
    "loss.num_pairs_d=2048",
    "data.augment.rotation=false",
    "data.augment.mirror=false",
    "data.augment.scale=0.05",
    "data.augment.color_jitter=0.02",
]


@pytest.fixture(scope="module")
def datasets(shared_data, module_s3_bucket):
    """The first 80 and the last 20 frames, packed to S3."""
    source = shared_data / "seven_scenes_style" / "data"
    urls = f"{module_s3_bucket}/train", f"{module_s3_bucket}/validation"
    for url, frames in zip(urls, (slice(0, NUM_TRAIN), slice(NUM_TRAIN, NUM_FRAMES)), strict=True):
        pack("seven-scenes", source, url, frames=frames, num_workers=2, shard_size_bytes=3 << 20)
    return urls


def test_training_lowers_both_losses_and_points_find_their_pixels_on_unseen_frames(datasets, tmp_path):
    train, validation = datasets
    run_dir = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "commands.main", "launch", "pretrain", "configs/smoke.yaml", "--workers", "1"),
            *(f"data.shards=[{train}]", f"data.validation_shards=[{validation}]", f"run.dir={run_dir}"),
            f"data.cache_dir={tmp_path / 'cache'}",
            *SETTINGS,
        ],
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr

    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss_e", "loss_d"):
        first, last = (fmean(step[name] for step in part) for part in (steps[:10], steps[-10:]))
        assert last < first - 0.5, f"{name}: {first} -> {last}"
    before, after = (json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines())
    report(before, after)
    assert before["frames_e"] == before["frames_d"] == NUM_FRAMES - NUM_TRAIN
    for name, wanted in WANTED.items():
        assert before[name] < 0.02
        assert after[name] > wanted


def report(before: dict[str, float], after: dict[str, float]) -> None:
    """Say the scores, whatever comes of them: `pytest -rP` shows them."""
    for name in ("retrieval_e", "retrieval_d"):
        print(f"{name}: {before[name]:.4f} untrained, {after[name]:.4f} trained (top-1 of 256; chance {1 / 256:.4f})")


def test_no_frame_is_in_both_parts(datasets):
    parts = []
    for url in datasets:
        reader = DatasetReader(url)
        counts = reader.samples_per_shard.tolist()
        parts.append({reader.key(shard, index) for shard, count in enumerate(counts) for index in range(count)})
    assert [len(part) for part in parts] == [NUM_TRAIN, NUM_FRAMES - NUM_TRAIN]
    assert parts[0].isdisjoint(parts[1])
