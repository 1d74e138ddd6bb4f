# SPDX-License-Identifier: LGPL-2.1-or-later
"""A model learns on a GPU, always the same way, until it is ended: each step's line in the file tells its loss and the sum of
all weights, in all their bits. usage: training.py FILE torch|emulated [DEVICE]. Emulated: the weights and what the optimizer
remembers of them are in device memory, of the emulated driver, and Python computes."""
import ctypes
import itertools
import sys
import time


class TorchModel:
    def __init__(self, device="cuda"):
        import torch
        torch.manual_seed(4711)
        torch.use_deterministic_algorithms(True)
        self.torch, self.device = torch, device
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 1)).to(device)
        self.optimizer = torch.optim.Adam(self.layers.parameters(), lr=1e-3)

    def step(self):
        """The random numbers come from the device, so the state of its generator has to come along as well."""
        inputs = self.torch.randn(1024, 64, device=self.device)
        loss = self.torch.nn.functional.mse_loss(self.layers(inputs), inputs[:, :8].sum(1, keepdim=True))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), sum(weights.double().sum().item() for weights in self.layers.parameters())


class EmulatedModel:
    """A line through points, by gradients with momentum."""
    Numbers = ctypes.c_double * 5  # two weights, what is remembered of each, the last random number

    def __init__(self):
        self.cuda, context, self.memory = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_uint64()
        self.call("cuInit", 0)
        self.call("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
        self.call("cuMemAlloc_v2", ctypes.byref(self.memory), ctypes.c_size_t(ctypes.sizeof(self.Numbers)))
        self.put(self.Numbers(0, 0, 0, 0, 4711))

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code != 0:
            sys.exit(f"{name}: error {code}")

    def put(self, numbers):
        self.call("cuMemcpyHtoD_v2", self.memory, ctypes.byref(numbers), ctypes.c_size_t(ctypes.sizeof(numbers)))

    def step(self):
        numbers = self.Numbers()
        self.call("cuMemcpyDtoH_v2", ctypes.byref(numbers), self.memory, ctypes.c_size_t(ctypes.sizeof(numbers)))
        slope, shift, slope_before, shift_before, random = numbers
        random = random * 16807 % 2147483647
        x = random / 2147483647
        error = slope * x + shift - (3 * x + 1)
        slope_before, shift_before = 0.5 * slope_before + error * x, 0.5 * shift_before + error
        slope, shift = slope - 0.05 * slope_before, shift - 0.05 * shift_before
        self.put(self.Numbers(slope, shift, slope_before, shift_before, random))
        return error * error, slope + shift


def main():
    path, kind, *device = sys.argv[1:]
    model = TorchModel(*device) if kind == "torch" else EmulatedModel()
    for step in itertools.count():
        loss, weights = model.step()
        with open(path, "a") as out:
            out.write(f"{step} {loss.hex()} {weights.hex()}\n")
        time.sleep(0.02)


main()
