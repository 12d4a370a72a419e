"""All mistakes at once, from every command that reads a configuration, before torch is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Told, call_in_turn

from t4p.config.check import check
from t4p.config.files import load_config, load_config_of, load_for_command
from t4p.config.tasks import JobConfig, PretrainConfig
from t4p.errors import ConfigError

ROOT = Path(__file__).resolve().parents[4]
SMOKE = "configs/smoke.yaml"
ROOMS = "configs/finetune/rooms.yaml"

# Key, override, and the line that it gets.
PLAN = ("model.unet.plan=Res16", "model.unet: plan is 'Res16'; known: Res16UNet14A, ")
IMAGE = (
    "data.image_size=[481, 640]",
    "data.image_size: 481x640, but a dense cell of configs/clip/tiny-vit32.json",
)
HEADS = (
    "model.text_query.num_heads=7",
    "model.text_query.num_heads: 7 does not divide 64, the width of the CLIP",
)
LABELS = ("model.labels=[chair, table, chair]", "model.labels: named twice: chair [command line]")
BATCH = ("train.grad_accum_steps=3", "train: global_batch_size (4) must be a multiple of grad_accum_steps (3) [")
UNKNOWN = ("train.lrr=1", "train.lrr: unknown key")
OF_PRETRAIN = (PLAN, IMAGE, HEADS, LABELS, BATCH, UNKNOWN)
OF_FINETUNE = (PLAN, HEADS, LABELS, BATCH, UNKNOWN)
OF_EVALUATE = (
    ("model.exprted=x", "model.exprted: unknown key, did you mean 'exported'? [command line]"),
    ("data.pixel_stride=0", "data.pixel_stride: wanted more than 0, got 0 [command line]"),
    ("data.num_workers=1.5", "data.num_workers: wanted a whole number, got 1.5 [command line]"),
)
COMMANDS = (
    (["pretrain", SMOKE], OF_PRETRAIN),
    (["launch", "pretrain", SMOKE, "--workers", "2"], OF_PRETRAIN),
    (["launch", "pretrain", SMOKE, "--workers", "2", "--dry-run"], OF_PRETRAIN),
    (["plan", SMOKE], OF_PRETRAIN),
    (["finetune", ROOMS], OF_FINETUNE),
    (["launch", "finetune", ROOMS, "--dry-run"], OF_FINETUNE),
    (["evaluate"], OF_EVALUATE),
)


@pytest.fixture(scope="module")
def told(clean_environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    """Exit status, torch loaded, output of each of COMMANDS with all of its mistakes."""
    folder = tmp_path_factory.mktemp("check")
    given = [f"data.shards=[{folder}/none]", f"run.dir={folder}/run", "train.global_batch_size=4"]
    calls = []
    for command, mistakes in COMMANDS:
        own = ["model.exported=x", given[0]] if command == ["evaluate"] else given
        calls.append([*command, *own, *(override for override, _ in mistakes)])
    answers = call_in_turn(calls, clean_environ)
    assert not (folder / "run").exists()
    return answers


@pytest.mark.parametrize("index", range(len(COMMANDS)), ids=lambda index: " ".join(COMMANDS[index][0]))
def test_every_command_tells_all_its_mistakes_at_once_without_torch(told: list[Told], index: int) -> None:
    status, torch_loaded, output = told[index]
    mistakes = COMMANDS[index][1]
    assert (status, torch_loaded) == (2, False), output
    assert f"{len(mistakes)} problem(s) in the configuration" in output
    for _, line in mistakes:
        assert f"\n  {line}" in output


def messages(*overrides: str, world: int | None = None) -> list[str]:
    """The lines about a pre-training with these overrides of configs/smoke.yaml."""
    try:
        load_for_command(
            "pretrain", [SMOKE], ["data.shards=[a]", *overrides], None if world is None else lambda cluster: world
        )
    except ConfigError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return []


@pytest.mark.parametrize(
    ("overrides", "world", "wanted"),
    [
        ([], None, None),
        ([], 2, None),
        ([], 3, "train.global_batch_size: 2, and there are 3 workers"),
        (["train.global_batch_size=12", "model.norm_group_size=4"], 6, "model.norm_group_size: 4, and there are 6"),
        (["train.global_batch_size=12", "model.norm_group_size=3"], 6, None),
        (["model.clip.name=RN51"], None, "model.clip.name: is 'RN51', which open_clip does not know; nearest: RN50"),
        (["model.clip.name=RN50"], None, "model.clip.dense: dense reading 'value-residual' is for ViT towers"),
        (["model.clip.name=RN50", "model.clip.dense=value"], None, None),
        (["model.clip.output_stride=8"], None, "model.clip.output_stride: output stride 8 is for ResNet towers"),
        (["model.clip.name=/mnt/of/the/cluster.json"], None, None),  # not here to be looked at
        (["model.clip.name=ViT-B-16", "model.text_query.num_heads=10"], None,
         "model.text_query.num_heads: 10 does not "),
        (["model.text_query.mlp_ratio=0.001"], None, "model.text_query.mlp_ratio: 0.001 leaves the MLP no "),
        (["model.unet.num_strides=9"], None, "model.unet: num_strides is 9; this plan can be cut to 1 .. 4"),
        (["model.unet.encoder_channels=[8]"], None, "model.unet: encoder_channels, encoder_blocks,"),
        (["model.labels=[]"], None, "model.labels: the list is empty"),
        (["model.point_features=[color, color]"], None, "model.point_features: names one twice"),
        (["data.drop_features={color: 0.3, height: 0.2}", "model.point_features=[color, height]"], None, None),
        (["data.drop_features.height=0.2"], None,
         "data.drop_features.height is 0.2, and height is not in model.point_features ([color]); leave it out, or"),
        (["data.drop_features.color=1"], None, "data.drop_features.color: wanted less than 1, got 1"),
        (["model.norm=layer", "model.norm_group_size=2"], None, "model: norm_group_size is for norm sync_batch, "),
        (["loss.weight_e=0", "loss.weight_d=0"], None, "loss: weight_e and weight_d are both 0"),
        (["loss.logit_scale_init=200"], None, "loss: logit_scale_init (200) must lie between 1 and "),
    ],
)  # fmt: skip
def test_what_can_be_known_without_data_is_known(overrides: list[str], world: int | None, wanted: str | None) -> None:
    found = messages(*overrides, world=world)
    assert len(found) == (wanted is not None), found
    assert not wanted or found[0].startswith(wanted)


@pytest.mark.parametrize(
    ("task", "override", "wanted"),
    [
        ("detection", "data.augment.elastic=0.5", "data.augment.elastic: 0.5, and a bent object has no box any mo"),
        ("detection", "data.labels_per_scene=20", "data.labels_per_scene: 20, and detection learns objects whole, of"),
        ("instance", "data.labels_per_scene=20", "data.labels_per_scene: 20, and instance learns objects whole, of "),
        ("instance", "data.augment={elastic: 0.5, mix: 0.5, position_jitter: 0.005}", None),
        ("detection", "data.augment={mix: 0.5, position_jitter: 0.005}", None),
        ("semantic", "data.labels_per_scene=20", None),
        ("semantic", "data.label_fraction=0", "data.label_fraction: wanted more than 0, got 0"),
        ("semantic", "data.augment.mix=2", "data.augment.mix: wanted at most 1, got 2"),
    ],
)
def test_what_no_task_can_learn_from_is_refused(task: str, override: str, wanted: str | None) -> None:
    overlay = [] if task == "semantic" else [f"configs/finetune/rooms_{task}.yaml"]
    given = ["data.shards=[a]", "run.dir=b", override]
    if wanted is None:
        load_for_command("finetune", [ROOMS, *overlay], given)
        return
    with pytest.raises(ConfigError) as caught:
        load_for_command("finetune", [ROOMS, *overlay], given)
    assert f"1 problem(s) in the configuration\n  {wanted}" in str(caught.value)


def test_a_value_that_is_wrong_is_not_taken_for_a_second_mistake() -> None:
    # num_steps would be its default, 60000, and warmup_steps smaller than it; image_size would not fit the tower.
    assert messages("train.num_steps=-1", "train.warmup_steps=70000", "data.image_size=[a, b]") == [
        "data.image_size: wanted a whole number, got a and b [command line]",
        "train.num_steps: wanted more than 0, got -1 [command line]",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.num_steps=1e3", "train.num_steps: wanted a whole number, got 1e3"),
        ("train.num_steps=many", "train.num_steps: wanted a whole number, got many"),
        ("train.learning_rate=fast", "train.learning_rate: wanted a number, got fast"),
        ("train.learning_rate=.nan", "train.learning_rate: wanted a number that is finite, got .nan"),
        ("train.deterministic=maybe", "train.deterministic: wanted true or false, got maybe"),
        ("train.zero_stage=7", "train.zero_stage: wanted 0, 1, 2 or 3, got 7"),
        ("train.precision=fp64", "train.precision: wanted 'fp32' or 'bf16', got fp64"),
        ("data.augment.scale=2", "data.augment.scale: wanted at most 1, got 2"),
        ("data.augment=5", "data.augment: wanted keys below it, one a line, got 5"),
        ("data.shards=5", "data.shards: wanted a list, such as [a, b], got 5"),
        ("data.shards=[]", "data.shards: wanted at least 1 of them, got []"),
        ("data.image_size=[480]", "data.image_size: wanted more of them, got [480]"),
        ("data.image_size=[480, 640, 3]", "data.image_size: wanted at most 2 of them, got [480, 640, 3]"),
        ("run.dir=''", "run.dir: wanted text that is not empty, got ''"),
        (
            "model.labels=5",
            "model.labels: wanted a list, such as [a, b] or a mapping, such as {a: [b, c]} or text, got 5",
        ),
        (
            "model.point_features=[red]",
            "model.point_features: wanted 'one', 'color', 'position' or 'height', got red",
        ),
    ],
)
def test_a_wrong_value_is_told_in_the_words_of_yaml(override: str, line: str) -> None:
    assert messages(override) == [f"{line} [command line]"]


def test_one_dataset_needs_no_brackets() -> None:
    assert load_config([SMOKE], ["data.shards=s3://bucket/a"]).data.shards == ("s3://bucket/a",)


def test_a_section_checks_its_own_rules_wherever_it_is_made() -> None:
    tree = {"run": {"dir": "a"}, "data": {"shards": ["b"]}, "train": {"warmup_steps": 9, "num_steps": 9}}
    with pytest.raises(ValueError, match=r"warmup_steps \(9\) must be smaller than num_steps \(9\)"):
        PretrainConfig.model_validate(tree)
    assert check(load_config([SMOKE], ["data.shards=[a]"])) == ()


@pytest.mark.parametrize(
    ("command", "files", "wanted"),
    [
        (
            "pretrain",
            [ROOMS],
            r"a configuration of `t4p finetune` \(train\.head_learning_rate_scale\); run `t4p f",
        ),
        ("finetune", [SMOKE], r"a configuration of `t4p pretrain` \(.*loss\.num_pairs_e, .*\); run `t4p pretrain`"),
        (
            "pretrain",
            ["tests/data/older/runs/semantic/config.yaml"],
            r"task is semantic \[config\.yaml\].*4p finetune`",
        ),
        (
            "finetune",
            ["tests/data/older/runs/pretrain/config.yaml"],
            r"task is pretrain \[config\.yaml\].*4p pretrain`",
        ),
    ],
)
def test_a_configuration_of_another_command_names_it(command: str, files: list[str], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        load_for_command(command, [ROOT / file for file in files])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1: 2\n", "the key 1 is no text; put quotes around it"),
        ("train: {on: 1}\n", "the key True is no text"),
        ("null: 2\n", "the key None is no text"),
        ("run: 3\n", "2 problem.*\n  run: wanted keys below it, one a line, got 3 .*\n  data: missing; "),
        ("", "2 problem.*\n  run: missing; set its keys in a file or as run.KEY=VALUE\n  data: missing; "),
        ("task: depth\n", "task is depth; known: pretrain, semantic, instance, detection"),
        ("run: {dir: a}\ndata: {shards: b}\nmodel: {labels: ''}\n", "model.labels: the name of the file is empty"),
        ("train: &a\n  b: *a\n", "an alias .* stands inside of what its anchor .* names"),
        ("run: {dir: a}\ndata: {shards: b}\nmodel: {labels: [a, ' ']}\n", "model.labels: a label is empty in"),
        ("train: {learning_rate: 1.0e+300}\n", "train.learning_rate: wanted less than 1e.38, got 1.0e"),
        ("model: {clip: {name: convnext_base}}\n", "model.clip.name: convnext_base has an image tower without a dense"),
    ],
)
def test_what_cannot_be_a_configuration_ends_with_its_problems(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=wanted):
        load_for_command("pretrain", [path])


def test_a_required_key_of_another_type_ends_too() -> None:
    class OwnConfig(JobConfig):
        task: str = "own"
        num_queries: int

    with pytest.raises(ConfigError, match=r"1 problem\(s\) in the configuration\n  num_queries: missing"):
        load_config_of(OwnConfig, [], ["data.shards=[a]", "run.dir=b"])
