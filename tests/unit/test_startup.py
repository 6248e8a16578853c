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


RUN = """
import subprocess, sys
from advprompt.cli import train
from advprompt.utils.entry import run_tool

called = []
sys.addaudithook(lambda event, args: event == "subprocess.Popen" and called.append(args[1]))
assert run_tool(train.main) == 0
slow = {"torchvision", "matplotlib", "open_clip", "timm", "pandas", "torch._dynamo.utils"}
assert not slow & set(sys.modules), slow & set(sys.modules)
assert not any("pip" in str(words) for words in called), called
"""


def test_a_run_of_the_built_in_model_imports_nothing_slow_and_never_calls_pip(white_box):
    keys = {"MODEL__BACKBONE__NAME": "tiny", "INPUT__SIZE": "(64,64)", "TEST__PICTURE": 0}
    words = [sys.executable, "-c", RUN, *white_box("CAPT", **keys)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
