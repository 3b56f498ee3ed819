"""The processes that train together, by Hugging Face Accelerate; a single process is the smallest case.

Gradients and figures are means over the processes, so that a run does not depend on how its batch was split.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import cast

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import nn

from fastdrive_node.devices import choose_device
from fastdrive_training.engine.config import RecipeError

PATIENCE = timedelta(hours=24)  # the first process may have a whole dataset to encode while the others wait


class Processes:
    """Joins the group that the launcher (``accelerate launch``, ``torchrun``) announced in the environment.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``; several processes on GPUs each take that of their local
            rank.

    Raises:
        InputError: no such device on this machine.
    """

    def __init__(self, device: str = "cpu"):
        chosen = choose_device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            AcceleratorState._reset_state(reset_partial_state=True)  # a process may train on one device, then another
            if chosen.index is not None:
                torch.cuda.set_device(chosen)
        elif not torch.distributed.is_initialized():
            atexit.register(_leave)
        waiting = InitProcessGroupKwargs(timeout=PATIENCE)
        self._accelerator = Accelerator(cpu=chosen.type == "cpu", mixed_precision="no", kwargs_handlers=[waiting])
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.first: bool = self._accelerator.is_main_process  # writes the files of the run
        self.device: torch.device = self._accelerator.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on the device, its backward pass averaging gradients over the processes."""
        return self._accelerator.prepare_model(module.to(self.device), device_placement=False)

    @contextmanager
    def no_sync(self, modules: Iterable[nn.Module], hold: bool) -> Iterator[None]:
        """While ``hold``, backward passes only add up gradients here, for a later pass to average."""
        with ExitStack() as stack:
            for module in modules if hold else ():
                stack.enter_context(self._accelerator.no_sync(module))
            yield

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise mean over the processes."""
        return cast(torch.Tensor, self._accelerator.reduce(values.to(self.device), "mean"))

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """[n] of each process -> [processes, n]."""
        return cast(torch.Tensor, self._accelerator.gather(values.unsqueeze(0).to(self.device)))

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The first process runs the block before the others, which then find its work done."""
        with self._accelerator.main_process_first():
            yield

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is bfloat16 on a GPU that has it, else float32. Raises RecipeError: bfloat16 on a GPU without."""
    has_it = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and not has_it:
        raise RecipeError("precision: this GPU has no bfloat16; use auto or float32")
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and has_it else "float32"


def _leave() -> None:
    """End the group's threads: one that still runs when the interpreter is gone aborts the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
