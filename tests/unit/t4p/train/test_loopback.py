"""A world on one machine listens on that machine alone. Two ranks of it meet in tests/integration."""

import os
import subprocess
import sys

ALONE = """
import os
from datetime import timedelta
import psutil, torch
from torch import distributed
from t4p.train.loopback import join_on_loopback
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="0")
join_on_loopback("gloo", timedelta(seconds=5))
assert not distributed.is_initialized(), "another world is torch's to start"
os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")
join_on_loopback("gloo", timedelta(seconds=5))
assert not distributed.is_initialized(), "torchrun holds the store"
del os.environ["TORCHELASTIC_USE_AGENT_STORE"]
for _ in range(2):
    join_on_loopback("gloo", timedelta(seconds=5))
sum = torch.ones(1)
distributed.all_reduce(sum)
assert sum == 1
print({found.laddr.ip for found in psutil.Process().net_connections() if found.status == psutil.CONN_LISTEN})
distributed.destroy_process_group()
"""


def test_a_process_alone_listens_nowhere_else():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLOO_", "TORCHELASTIC"))}
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'127.0.0.1'}"
