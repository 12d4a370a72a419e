from __future__ import annotations

from pathlib import Path

from commands.arguments import split_arguments
from commands.quickstart.rooms import FINETUNE_STEPS, Rooms, finetune_arguments
from t4p.config.files import load_config_of
from t4p.config.tasks import SemanticConfig


def test_both_fine_tunings_differ_in_their_start_alone(tmp_path: Path) -> None:
    rooms = Rooms(*(str(tmp_path / "with space" / name) for name in ("training", "labelled", "held_out", "shown")))
    checkpoint = tmp_path / "a: b" / "step_00000400"
    scratch, pretrained = (
        load_config_of(SemanticConfig, *split_arguments(finetune_arguments(rooms, tmp_path / "run", start)))
        for start in (None, checkpoint)
    )
    assert scratch.data.shards == pretrained.data.shards == (rooms.labelled,)
    assert scratch.train.num_steps == FINETUNE_STEPS
    assert (scratch.model.pretrained, scratch.model.head) == (None, "linear")
    assert (pretrained.model.pretrained, pretrained.model.head) == (str(checkpoint), "words")
    same = {"head_learning_rate_scale": 0.0}
    assert scratch.train.model_copy(update=same) == pretrained.train.model_copy(update=same)
