"""What a person may choose of how frames are packed: names for the command line, which imports nothing heavier."""

from typing import Literal

# Whether images are decoded, or only their headers and checksums looked at.
Check = Literal["headers", "full"]
# How depth is stored; of a PNG the bytes stay as they were found.
DepthCodec = Literal["png", "zstd"]
