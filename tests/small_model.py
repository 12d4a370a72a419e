"""A model that trains a step in some 40 ms: overrides of configs/smoke.yaml for runs on real frames.

Each test adds its shards, its run folder and how long it trains.
"""

SMALL = [
    "data.image_size=[96, 128]",
    "data.pixel_stride=8",
    "data.num_workers=0",
    "model.voxel_size=0.1",
    "model.unet.stem_channels=8",
    "model.unet.encoder_channels=[8, 12]",
    "model.unet.decoder_channels=[12, 8]",
    "loss.num_pairs_e=64",
    "loss.num_pairs_d=128",
]
