"""Commands start without PyTorch's compiler, and whoever compiles still gets it."""

import subprocess
import sys

CODE = """
import inspect, sys, torch
from advprompt.utils.startup import hasten

hasten()
layer = torch.nn.Linear(3, 3)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

def step():
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

step()
inspect.stack()
assert "torch._dynamo.utils" not in sys.modules
doubled = torch.compile(lambda x: 2 * x, backend="eager")
assert doubled(torch.ones(2)).tolist() == [2, 2]
assert "torch._dynamo.utils" in sys.modules
from torch._dynamo import config, utils
torch.compile(step, backend="eager")()
assert sys.modules["torch._dynamo"].__file__ and torch._dynamo is sys.modules["torch._dynamo"]
"""


def test_the_compiler_is_loaded_by_its_first_use():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
