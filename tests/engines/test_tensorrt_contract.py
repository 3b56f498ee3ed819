"""Every class, method, member and argument that the code uses exists in the real Python bindings of TensorRT.

NVIDIA's bindings wheels import without a GPU when three libraries stand in for TensorRT's own. The wheels are looked
for in ``$FASTDRIVE_TENSORRT_WHEELS`` (``~/.cache/fastdrive/tensorrt`` otherwise). ``make test`` fetches them; by hand:

    pip download --no-deps -d ~/.cache/fastdrive/tensorrt tensorrt-cu13-bindings==10.16.1.11
    pip download --no-deps -d ~/.cache/fastdrive/tensorrt tensorrt-cu13-bindings==11.4.0.106
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastdrive_export
import fastdrive_node

VERSIONS = ("10.16.1.11", "11.4.0.106")
WHEELS = Path(os.environ.get("FASTDRIVE_TENSORRT_WHEELS", "~/.cache/fastdrive/tensorrt")).expanduser()
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getInferLibVersion",
    "getLogger",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
SOURCES = (
    Path(fastdrive_node.__path__[0], "engines", "tensorrt_api.py"),
    Path(fastdrive_node.__path__[0], "engines", "tensorrt_messages.py"),
    Path(fastdrive_node.__path__[0], "engines", "tensorrt_plan.py"),
    Path(fastdrive_node.__path__[0], "engines", "tensorrt_runner.py"),
    Path(fastdrive_export.__path__[0], "tensorrt_build.py"),
    Path(__file__).resolve().parents[2] / "benchmarks" / "perf" / "tensorrt_worker.py",
)
# variable in the sources -> class of TensorRT
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "cache": "ITimingCache",
    "layer": "ILayer",
    "tensor": "ITensor",
}
# members of older versions, behind a test of the version or of their presence
OLD_IN_10 = {"PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"}
OLD_IN_11 = OLD_IN_10 | {
    "BuilderFlag.FP16",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
    "ICudaEngine.device_memory_size",
    "ILayer.precision",
    "ILayer.set_output_type",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
}
DUMP = """
import inspect, json, tensorrt_bindings as trt
def members(owner):
    return {name: getattr(owner, name).__doc__ or "" for name in dir(owner)}
api = {name: members(value) for name, value in vars(trt).items() if inspect.isclass(value)}
api["ILogger.Severity"] = members(trt.ILogger.Severity)
print(json.dumps({"version": trt.__version__, "api": api}))
"""


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request, tmp_path_factory) -> dict:
    """Version and API of the real bindings: class -> member -> docstring."""
    pattern = f"tensorrt_cu13_bindings-{request.param}-cp{sys.version_info.major}{sys.version_info.minor}-*.whl"
    wheels = sorted(WHEELS.glob(pattern))
    if not wheels:
        pytest.skip(f"no {pattern} in {WHEELS}; fetch it with pip download (see this file)")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the libraries that stand in for TensorRT's")
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    major = request.param.split(".")[0]
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    result = subprocess.run([sys.executable, "-c", DUMP], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def used() -> tuple[set[str], dict[str, set[int]]]:
    """Members that the sources use, as ``Class.member``, and the numbers of arguments that they are called with."""
    members: set[str] = set()
    calls: dict[str, set[int]] = {}
    for source in SOURCES:
        tree = ast.parse(source.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                members.update(optional_members(call, function))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (name := member_of(node)):
                members.add(name)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and (name := member_of(node.func)):
                given = len(node.args) + len(node.keywords)
                calls.setdefault(name, set()).add(given - name.endswith(".__init__"))  # which is given self
    return members, calls


def member_of(node: ast.Attribute) -> str | None:
    """``trt.A`` -> A, ``trt.A.B`` -> A.B, ``engine.x`` and ``self.engine.x`` -> ICudaEngine.x."""
    words = chain(node)
    if words[:2] == ["trt", "__version__"]:
        return None
    if words[0] == "trt" and len(words) > 1:
        return ".".join(words[1:])
    owner = OBJECTS.get(words[-2].lstrip("_")) if len(words) > 1 else None
    return f"{owner}.{words[-1]}" if owner else None


def optional_members(node: ast.Call, function: ast.FunctionDef) -> list[str]:
    """``optional(trt.A, "B")`` -> [A.B]; with a variable for the name, every text of the loop that it comes from."""
    if not (isinstance(node.func, ast.Name) and node.func.id == "optional"):
        return []
    words, name = chain(node.args[0]), node.args[1]
    names = [name.value] if isinstance(name, ast.Constant) else looped_over(name.id, function)
    owner = words[1:] if words[0] == "trt" else [OBJECTS[words[-1]]]
    return [".".join([*owner, each]) for each in names]


def looped_over(variable: str, function: ast.FunctionDef) -> list[str]:
    """The texts of the tuples that a variable runs over."""
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For | ast.comprehension)]
    tuples = [node.iter for node in loops if getattr(node.target, "id", None) == variable]
    texts = [each.value for values in tuples if isinstance(values, ast.Tuple) for each in values.elts]
    assert texts, f"what does {variable!r} run over?"
    return texts


def chain(node: ast.expr) -> list[str]:
    """``a.b.c`` -> [a, b, c]; what is no chain of names gives [""]."""
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def old(bindings: dict) -> set[str]:
    return OLD_IN_11 if bindings["version"].startswith("11.") else OLD_IN_10


def exists(api: dict, member: str) -> bool:
    owner, _, name = member.rpartition(".")
    return member in api or name in api.get(owner, {})


def test_the_sources_use_what_they_are_thought_to():
    """The search below finds something in every source."""
    members, calls = used()
    known = ["Builder.build_serialized_network", "IExecutionContext.execute_async_v3", "OnnxParser.parse_from_file"]
    rare = ["BuilderFlag.FP16", "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ITensor.dtype"]
    rare += ["PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", "ILogger.Severity.ERROR"]
    assert {*known, *rare, "EngineInspector.get_engine_information"} <= members
    assert calls["IExecutionContext.set_tensor_address"] == {2}


def test_every_member_exists(bindings):
    members, _ = used()
    missing = {member for member in members - old(bindings) if not exists(bindings["api"], member)}
    assert not missing


def test_what_is_treated_as_gone_is_gone(bindings):
    assert not {member for member in old(bindings) if exists(bindings["api"], member)}


def test_every_call_has_the_arguments_that_the_binding_takes(bindings):
    for member, counts in used()[1].items():
        owner, _, name = member.rpartition(".")
        text = bindings["api"].get(owner, {}).get(name, "")
        signatures = [arguments(line) for line in text.splitlines() if re.match(rf"(\d+\. )?{name}\(self: ", line)]
        for count in counts:
            fits = [low <= count <= high for low, high in signatures]
            assert not signatures or any(fits), f"{member} with {count} arguments: {text.splitlines()[0]}"


def test_callbacks_have_the_parameters_that_tensorrt_gives(bindings):
    nodes = [node for source in SOURCES for node in ast.walk(ast.parse(source.read_text()))]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    for ours, theirs in (("Monitor", "IProgressMonitor"), ("Logger", "ILogger")):
        for method in (node for node in classes[ours].body if isinstance(node, ast.FunctionDef)):
            text = bindings["api"][theirs].get(method.name, "")
            if method.name.startswith("__") or not text.startswith(f"{method.name}(self: "):
                continue
            assert len(method.args.args) - 1 == arguments(text.splitlines()[0])[1], f"{theirs}.{method.name}: {text}"


def arguments(signature: str) -> tuple[int, int]:
    """Least and most arguments, without self, of ``name(self: A, b: C, d: E = 0) -> F``."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    inside = re.sub(r"\[[^\]]*\]", "", inside)
    names = [part for part in inside.split(", ")[1:] if ":" in part]
    return sum(" = " not in part for part in names), len(names)
