"""What the environment says of the workers is refused before torch is there, with the variable named."""

import pytest

from commands.arguments import world_of
from t4p.errors import ConfigError

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_a_whole_environment_and_none_give_the_world_size() -> None:
    assert world_of({}) == 1
    assert world_of(WHOLE) == 2


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE='x' in the environment: wanted whole numbers"),
        (WHOLE | {"RANK": "-1"}, "RANK='-1' in the environment: wanted whole numbers"),
        (WHOLE | {"RANK": "5"}, "RANK=5 and WORLD_SIZE=2 .* ranks count from 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 .* without RANK, MASTER_ADDR, MASTER_PORT; start the workers with"),
    ],
)
def test_what_does_not_fit_is_named(environment: dict[str, str], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        world_of(environment)
