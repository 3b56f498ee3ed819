"""The processes that train together, through Hugging Face Accelerate; one, without it, where no launcher started more.

Gradients and figures are means over the processes, so that a run does not depend on how its batch was split.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(hours=24)  # the first process may have a whole data set to encode while the others wait


class Processes:
    """Joins the group that the launcher (``accelerate launch``, ``torchrun``) announced in the environment.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:<index>``; several processes on GPUs each take that of their local rank.
    """

    def __init__(self, device: str):
        self._accelerator = _join(device) if launched() > 1 else None
        self.count: int = self._accelerator.num_processes if self._accelerator else 1
        self.rank: int = self._accelerator.process_index if self._accelerator else 0
        self.device = self._accelerator.device if self._accelerator else torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on the device, its backward pass averaging gradients over the processes."""
        module = module.to(self.device)
        return self._accelerator.prepare_model(module, device_placement=False) if self._accelerator else module

    @contextmanager
    def holding(self, modules: list[nn.Module], hold: bool) -> Iterator[None]:
        """While ``hold``, backward passes only add up gradients here, for a later pass to average."""
        with ExitStack() as stack:
            for module in modules if hold and self._accelerator else ():
                stack.enter_context(self._accelerator.no_sync(module))
            yield

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise mean over the processes."""
        return self._accelerator.reduce(values.to(self.device), "mean") if self._accelerator else values

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """[n] of each process -> [processes, n]."""
        values = values.unsqueeze(0)
        return self._accelerator.gather(values.to(self.device)) if self._accelerator else values

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The first process runs the block before the others, which then find its work done."""
        with self._accelerator.main_process_first() if self._accelerator else ExitStack():
            yield

    def wait(self) -> None:
        """Until every process is here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()


def launched() -> int:
    """How many processes the launcher announced."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _join(device: str) -> Accelerator:
    from accelerate import Accelerator, InitProcessGroupKwargs

    if not torch.distributed.is_initialized():
        atexit.register(_leave)
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[waiting])


def _leave() -> None:
    """End the group's threads: one that still runs when the interpreter is gone aborts the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
