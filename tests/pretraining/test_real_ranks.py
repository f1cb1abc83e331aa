"""Ranks of thousands really built: on the meta device, with torch's fake process group.

Nothing is computed and nothing sent, but the mesh, the stages and every shard are made by the code
that trains. The planner, which knows formulas only, must give each rank the same bytes.
"""

import json
import subprocess
import sys

BUILD = """
import json, sys
import torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from puna.model import Llama, llama_config
from puna.parallel import Layout, mesh
from puna.parallel.parallelize import parallelize
from puna.pretraining.planner.hardware import hardware
from puna.pretraining.planner.job import Job
from puna.pretraining.planner.shares import held_numbers

config, gpu, found = llama_config("llama3.1-405b"), hardware("h100"), []
for settings, rank in json.loads(sys.argv[1]):
    layout = Layout.parse(settings, where="test")
    job = Job(config, gpu, layout, 131072, layout.microbatches)
    size = layout.n_processes
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    with torch.device("meta"):
        model = Llama(config)
    made = parallelize(model, layout)
    held = {id(p): p for part in made.parts for p in part.parameters()}.values()
    assert all(p.device.type == "meta" for p in held)
    built = sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in held)
    at = made.mesh.places
    shard = at["dp_shard"] * layout.cp + at["cp"]
    found.append([at["pp"], built, 4 * held_numbers(job, at["pp"], at["tp"], shard)])
    dist.destroy_process_group()
    mesh._devices.cache_clear()
print(json.dumps(found))
"""
LLAMA = {"dp_replicate": 1, "dp_shard": 128, "tp": 8, "pp": 16, "microbatches": 16}
LLAMA |= {"schedule": "interleaved", "stages_each": 4}
LONG = LLAMA | {"dp_shard": 8, "cp": 16}
LARGER = {"dp_replicate": 1, "dp_shard": 64, "tp": 8, "cp": 4, "pp": 12, "microbatches": 32}
LARGER |= {"schedule": "interleaved", "stages_each": 8}


RANKS = [(LLAMA, 0), (LLAMA, 16383), (LONG, 16383), (LARGER, 24575)]


def test_a_rank_of_405b_has_the_bytes_that_the_planner_says() -> None:
    command = [sys.executable, "-c", BUILD, json.dumps(RANKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [place for place, _, _ in found] == [0, 15, 15, 11]
    for _, built, planned in found:
        assert built == planned > 50e6
