"""TensorRT as the engine's runtime: device pointers in, device pointers out, the launches as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastdrive_node.devices import describe
from fastdrive_node.engines.graph_info import TensorInfo
from fastdrive_node.engines.manifest import Manifest, TargetInfo, build_hint, check_tensors
from fastdrive_node.engines.tensorrt_api import device_memory_bytes, io_tensors, load_tensorrt
from fastdrive_node.engines.tensorrt_plan import PlanExecutor
from fastdrive_node.errors import ModelError

_log = logging.getLogger(__name__)


class TensorRtRunner:
    """See ``engine.Runner``.

    Args:
        file: checked plan file.
        manifest: of it.
        device: of the VLA; must be a GPU.

    Raises:
        ModelError: another TensorRT or GPU than the plan's, or a plan that TensorRT does not accept.
    """

    def __init__(self, file: Path, manifest: Manifest, device: torch.device):
        if device.type != "cuda":
            raise ModelError(
                f"{file}: device: a TensorRT engine needs a GPU, but the model is on {device.type}; set device to cuda"
            )
        trt = load_tensorrt()
        self.device = torch.device("cuda", device.index or 0)
        check_target(file, manifest, present_target(trt, self.device))
        with torch.cuda.device(self.device):
            self._executor = PlanExecutor(trt, file.read_bytes())
        check_tensors(file, manifest, *io_table(trt, self._executor.engine))
        self.name = (
            f"tensorrt {trt.__version__}, {device_memory_bytes(self._executor.engine) / 1e6:.0f} MB of activations"
        )
        self._stream = torch.cuda.Stream(self.device)
        self._bound: dict[str, int] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._may_capture = True

    def execute(self, pointers: Mapping[str, int]) -> None:
        """Run once and wait. The first run on new addresses is recorded for the later ones."""
        caller = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            self._stream.wait_stream(caller)
            if dict(pointers) != self._bound:
                self._executor.bind(pointers)
                self._bound, self._graph = dict(pointers), None
            if self._graph is not None:
                self._graph.replay()
            else:
                self._executor.enqueue(self._stream.cuda_stream)
            self._stream.synchronize()
            if self._graph is None and self._may_capture:
                self._graph = self._capture()

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        """The launches of one run; None, permanently, where they cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads may use the GPU during the capture
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._executor.enqueue(self._stream.cuda_stream)
        except (RuntimeError, ModelError) as error:
            _log.warning("the engine runs without a CUDA graph: %s", " ".join(str(error).split())[:200])
            self._may_capture = False
            return None
        return graph


def io_table(trt: Any, engine: Any) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Inputs and outputs of an engine, as a manifest has them."""
    inputs, outputs = {}, {}
    for each in io_tensors(trt, engine):
        (inputs if each.is_input else outputs)[each.name] = TensorInfo(each.dtype, each.shape)
    return inputs, outputs


def present_target(trt: Any, device: torch.device) -> TargetInfo:
    """This machine, as a manifest describes it."""
    major, minor = torch.cuda.get_device_capability(device)
    return TargetInfo(
        tensorrt=trt.__version__,
        compute_capability=f"{major}.{minor}",
        device=torch.cuda.get_device_name(device),
        driver=describe(device)["driver"] or "unknown",
        flags={},
    )


def check_target(file: Path, manifest: Manifest, present: TargetInfo) -> None:
    """The plan was built by this TensorRT for this GPU. Another driver gives only a warning: plans outlive drivers.

    Raises:
        ModelError: a field differs.
    """
    built: Any = manifest.target
    for name in ("tensorrt", "compute_capability", "device"):
        theirs, ours = getattr(built, name), getattr(present, name)
        if theirs != ours:
            raise ModelError(
                f"{file}: target.{name}: built with {theirs!r}, but here is {ours!r}; a plan runs only where it was "
                f"built; {build_hint(file, manifest)}"
            )
    if built.driver != present.driver:
        _log.warning("%s was built with driver %s, here is %s", file, built.driver, present.driver)
