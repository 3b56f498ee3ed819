"""onnxruntime as the backend of an engine: the portable one, on the CPU, CUDA or its TensorRT provider."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from fastdrive_node.engines.graph_info import FUSED, METADATA_KEY, STANDARD, TensorInfo
from fastdrive_node.engines.manifest import Manifest, build_hint, check_tensors, short
from fastdrive_node.errors import ModelError

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}
_BINDINGS = 128  # of addresses and lengths that come again: a binding takes as long as a small part of a run
_BFLOAT16 = 16  # TensorProto.DataType; numpy has no such type
_log = logging.getLogger(__name__)


class OnnxRunner:
    """A session with its memory bound by address, so that nothing is copied to the host on a GPU.

    Args:
        file: checked ONNX file.
        manifest: of it.
        device: of the VLA; ``auto`` follows it.
        provider: auto, cpu, cuda or tensorrt. The TensorRT provider builds its engines at the first start, which takes
            minutes, and keeps them in the folder ``<file>.trt_cache``.

    Raises:
        ModelError: the provider is missing, it cannot run the file, or the file is not the manifest's.
    """

    def __init__(self, file: Path, manifest: Manifest, device: torch.device, provider: str = "auto"):
        provider = _choose(provider, device, manifest.graph.fused)
        self.device = torch.device("cpu") if provider == "cpu" else torch.device("cuda", device.index or 0)
        if manifest.graph.fused and provider != "cpu":
            graph = manifest.graph.model_copy(update={"operators": STANDARD})
            hint = build_hint(file, manifest.model_copy(update={"graph": graph}))
            raise ModelError(
                f"{file}: operators: {FUSED}'s own, which run on the CPU here, not with provider {provider}; set "
                f"onnx_provider to cpu, or {hint}"
            )
        self._session = _open(file, manifest, provider, self.device)
        self.name = f"onnxruntime {onnxruntime.__version__} {provider}"
        self._tensors = manifest.graph.inputs() | manifest.graph.outputs()
        self._inputs = set(manifest.graph.inputs())
        _check_session(file, manifest, self._session)
        self._bindings: OrderedDict[Any, onnxruntime.IOBinding] = OrderedDict()  # the last used is the last

    def execute(self, pointers: Mapping[str, int], lengths: Mapping[str, int] | None = None) -> None:
        """Run once and wait; see ``engine.Runner``. ``lengths``: of the names in the tensors' shapes."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # the session runs on a stream of its own
        wanted = (tuple(pointers.items()), tuple((lengths or {}).items()))
        binding = self._bindings.get(wanted)
        if binding is None:
            binding = self._bindings[wanted] = self._bind(pointers, lengths or {})
            if len(self._bindings) > _BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(wanted)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises many kinds
            raise ModelError(f"onnxruntime: the engine failed ({_first_line(error)})") from error

    def _bind(self, pointers: Mapping[str, int], lengths: Mapping[str, int]) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, info in self._tensors.items():
            bind = binding.bind_input if name in self._inputs else binding.bind_output
            shape = [lengths[length] if isinstance(length, str) else length for length in info.shape]
            dtype = _BFLOAT16 if info.dtype == "bfloat16" else np.dtype(info.dtype)
            bind(name, self.device.type, self.device.index or 0, dtype, shape, pointers[name])
        return binding


def _choose(provider: str, device: torch.device, fused: bool) -> str:
    present = onnxruntime.get_available_providers()
    if provider == "auto" and fused:
        if device.type == "cuda":
            _log.warning(
                "the engine has onnxruntime's own operators and runs on the CPU; for the GPU build it with "
                "--operators %s",
                STANDARD,
            )
        return "cpu"
    if provider == "auto":
        if device.type == "cuda" and _PROVIDERS["cuda"] not in present:
            _log.warning("onnxruntime has no CUDA provider: the engine runs on the CPU; install onnxruntime-gpu")
        return "cuda" if device.type == "cuda" and _PROVIDERS["cuda"] in present else "cpu"
    if _PROVIDERS[provider] not in present:
        raise ModelError(
            f"onnx_provider: {provider!r} is not in this onnxruntime ({', '.join(present)}); install onnxruntime-gpu, "
            "or use cpu"
        )
    return provider


def _open(file: Path, manifest: Manifest, provider: str, device: torch.device) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads of a session that has ended its run would spin on and take the cores from whatever runs next: torch, and
    # the session of the other part. On two cores that makes a plan take three times as long (docs/latency.md).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors
    wanted = _PROVIDERS[provider]
    providers: list = [(wanted, _provider_options(file, manifest, provider, device))]
    if provider == "tensorrt":
        providers.append((_PROVIDERS["cuda"], {"device_id": str(device.index or 0)}))
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # onnxruntime raises many kinds for what it cannot read or run
        text = _first_line(error)
        if "NOT_IMPLEMENTED" in text and manifest.graph.precision == "bf16":
            raise ModelError(
                f"{file}: precision: bf16, which onnxruntime's {provider} provider does not compute ({text}); build it "
                "with --precision fp16 or fp32"
            ) from error
        raise ModelError(
            f"{file}: not an ONNX file that onnxruntime runs ({text}); {build_hint(file, manifest)}"
        ) from error
    if wanted not in session.get_providers():
        raise ModelError(
            f"onnx_provider: {provider!r} could not be loaded by onnxruntime; install its CUDA libraries, or use cpu"
        )
    return session


def _provider_options(file: Path, manifest: Manifest, provider: str, device: torch.device) -> dict[str, str]:
    if provider == "cpu":
        return {}
    options = {"device_id": str(device.index or 0)}
    if provider == "tensorrt":
        # The manifest's hash in the name keeps a cache from serving another graph.
        cache = file.with_name(f"{file.name}.trt_cache") / manifest.files[file.name].sha256[:12]
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}
    return options


def _check_session(file: Path, manifest: Manifest, session: onnxruntime.InferenceSession) -> None:
    """The tensors of the file, and the graph's description in it, are the manifest's."""
    tensors = (
        {each.name: TensorInfo(_TYPES.get(str(each.type), str(each.type)), tuple(each.shape)) for each in arguments}
        for arguments in (session.get_inputs(), session.get_outputs())
    )
    check_tensors(file, manifest, *tensors)
    try:
        inside = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        inside = {}
    expected = manifest.graph.model_dump(mode="json") | {"operators": manifest.graph.operators}
    if isinstance(inside, dict):
        inside.setdefault("operators", STANDARD)  # which is left out
    for name, value in expected.items():
        if not isinstance(inside, dict) or inside.get(name) != value:
            stated = short(inside.get(name)) if isinstance(inside, dict) else "nothing"
            raise ModelError(
                f"{file}: {name}: the graph says {stated}, its manifest {short(value)}; {build_hint(file, manifest)}"
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
