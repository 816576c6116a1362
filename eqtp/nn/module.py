"""What the modules of eqtp have in common."""

from __future__ import annotations

import torch


class Module(torch.nn.Module):
    """A torch module whose forward is Python, or calls eqtp's ops, which Python registers: TorchScript cannot compile
    it."""

    def __prepare_scriptable__(self):
        """torch.jit.script calls this on every module of a model, before it changes or compiles anything."""
        raise NotImplementedError(
            f"torch.jit.script: {type(self).__name__} of eqtp cannot be scripted, it is called from Python; "
            "use torch.compile or torch.export, or call report.undo() on what eqtp.accelerate returned and script the "
            "original model"
        )
