"""Asynchronous tensor parallelism, as far as it goes without a second GPU: a forward graph."""

import json
import subprocess
import sys

import pytest

from puna.core.errors import UsageError
from puna.parallel import Layout
from puna.training import LoopConfig

# The graph of a compiled block of one of two processes, before and after torch's pass. The pass
# takes the place of running it, which only GPUs can.
PROGRAM = """
import json
import torch
import torch.distributed as dist
from torch._inductor.exc import InductorError
from torch._inductor.fx_passes import post_grad
from torch.distributed import _symmetric_memory
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from puna.model import Llama, LlamaConfig
from puna.parallel.tensor import exchange_within_products, spread_products

dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
shape = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
model = Llama(LlamaConfig.parse(shape | {"vocab_size": 64, "context": 64}, where="test"))
model.init_weights(1)
mesh = init_device_mesh("cpu", (2,))
spread_products(model, mesh)
enabled = []
_symmetric_memory.enable_symm_mem_for_group = enabled.append
exchange_within_products(mesh.get_group())
dist.is_nccl_available = lambda: True
_symmetric_memory.is_symm_mem_enabled_for_group = lambda name: name in enabled
fuse, found = post_grad.micro_pipeline_tp_pass, []

class Seen(Exception):
    pass

def look(graph):
    for _ in range(2):
        targets = [str(node.target) for node in graph.nodes]
        names = ("mm", "all_gather_into", "reduce_scatter_tensor", "fused_all", "fused_matmul")
        found.append([sum(f"::{n}" in t or f".{n}" in t for t in targets) for n in names])
        if len(found) < 2:
            fuse(graph)
    raise Seen

post_grad.micro_pipeline_tp_pass = look
model.compile_blocks()
try:
    model.hidden(torch.randint(0, 64, (2, 32)))
except InductorError as error:
    assert "Seen" in repr(error), error
print(json.dumps(found))
"""


def test_every_exchange_of_a_block_becomes_part_of_a_product() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before == [7, 2, 2, 0, 0]  # products, gatherings, scatterings, and no joined ones
    assert after == [0, 0, 0, 2, 2]


def test_it_needs_tensor_parallelism_and_compiled_blocks() -> None:
    with pytest.raises(UsageError, match="async_tp is of tensor parallelism: set tp"):
        Layout.parse({"async_tp": True}, where="test")
    loop = {"steps": 1, "batch_rows": 1, "learning_rate": 1, "layout": {"tp": 2, "async_tp": True}}
    with pytest.raises(UsageError, match="set compile to true"):
        LoopConfig.parse(loop, where="test")
    LoopConfig.parse(loop | {"compile": True}, where="test")
