"""A working tree's share of bench_geometry.py: asked for frames, it says what they took. Runs in older trees too."""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import time
from pathlib import Path


def main(frames: Path, layout: str, config_file: str, depth_codec: str) -> None:
    """Read "FIRST COUNT" from every line of the input, and write the CPU seconds a frame, by stage.

    Args:
        depth_codec: what depth is packed as, where the tree has a choice.
    """
    import torch

    from shards.packing.pack import pack
    from t4p.config.files import load_config
    from t4p.data.batch import PairRecipe
    from t4p.data.decode import decode_frame
    from t4p.data.fetch import Catalogue
    from t4p.models.towers import load_towers_from
    from t4p.tasks.pretrain import build_sample_settings

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        has_choice = "depth_codec" in inspect.signature(pack).parameters
        pack(layout, frames, f"{folder}/shards", **({"depth_codec": depth_codec} if has_choice else {}))
        config = load_config([Path(config_file)], [f"data.shards=[{folder}/shards]", "model.clip.pretrained=random"])
        towers = load_towers_from(config.model.clip, 0)
        catalogue, recipe = Catalogue([f"{folder}/shards"]), PairRecipe(build_sample_settings(config, towers))
        for line in sys.stdin:
            first, count = map(int, line.split())
            places = [(0, index % int(catalogue.samples_per_shard[0])) for index in range(first, first + count)]
            started = time.process_time()
            for place in places:
                decode_frame(catalogue.fetch(*place))
            decoded = time.process_time()
            made = [recipe.make(catalogue.fetch(*place), 0, catalogue.key(*place), first) for place in places]
            prepared = time.process_time()
            for each in made:
                recipe.join([each])
            ended = time.process_time()
            found = {"decode": decoded - started, "make": prepared - decoded, "sample": ended - decoded}
            print(json.dumps({stage: seconds / count for stage, seconds in found.items()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
