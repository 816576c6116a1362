"""Where the host would wait for a GPU."""

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "equal", "nonzero", "item", "is_nonzero", "_unique2", "masked_select")


class Waits(TorchDispatchMode):
    """Lists the operations in it for which the host would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
