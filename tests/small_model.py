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

# The smallest network, two strides of Res16UNet14A, and nothing about what goes in or comes out of it.
TINY_NETWORK = [
    "model.unet.plan=Res16UNet14A",
    "model.unet.num_strides=2",
    "model.unet.stem_channels=8",
    "model.unet.stem_kernel_size=3",
    "model.unet.encoder_channels=[8, 12]",
    "model.unet.decoder_channels=[12, 8]",
    "model.text_query.num_heads=4",
]
