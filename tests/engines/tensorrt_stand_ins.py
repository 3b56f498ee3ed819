"""Modules with the members of one TensorRT version, as far as versions differ; they record what is asked of them."""

from __future__ import annotations

from types import SimpleNamespace

VERSIONS = ("8.5.3.1", "8.6.1.6", "10.3.0.26", "10.13.3.9", "11.4.0.106")


class Config:
    """Records what is set."""

    def __init__(self):
        self.set_flags, self.cleared, self.limits = [], [], {}
        self.tactic_sources, self.preview = None, {}
        self.caches = []

    def set_flag(self, flag):
        assert flag is not None
        self.set_flags.append(flag)

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def set_tactic_sources(self, sources):
        self.tactic_sources = sources

    def set_preview_feature(self, feature, enable):
        self.preview[feature] = enable

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.caches.append(cache.content)
        return cache.content != b"of another GPU"


class Builder:
    def __init__(self, config):
        self.config = config

    def create_network(self, flags):
        return SimpleNamespace(flags=flags)

    def create_builder_config(self):
        return self.config


def enum(*names):
    return SimpleNamespace(**{name: name for name in names})


def stand_in(version: str):
    """A module with the members that this version of TensorRT has, as far as versions differ."""
    major, minor = (int(part) for part in version.split(".")[:2])
    creation = {} if major >= 11 else {"EXPLICIT_BATCH": 0}
    if major >= 10:
        creation["STRONGLY_TYPED"] = 1
    config_class = type("IBuilderConfig", (), {"builder_optimization_level": 0} if (major, minor) >= (8, 6) else {})
    preview = ["DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"] if major < 10 else ["PROFILE_SHARING_0806"]
    module = SimpleNamespace(
        __version__=version,
        PreviewFeature=enum(*preview),
        NetworkDefinitionCreationFlag=SimpleNamespace(**creation),
        BuilderFlag=enum("TF32", *([] if major >= 11 else ["FP16", "OBEY_PRECISION_CONSTRAINTS"])),
        IBuilderConfig=config_class,
        MemoryPoolType=enum("WORKSPACE"),
        ProfilingVerbosity=enum("DETAILED"),
        DataType=enum("FLOAT", "HALF", "INT32", "UINT8"),
        TensorIOMode=enum("INPUT", "OUTPUT"),
        ILogger=type("ILogger", (), {"Severity": enum("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")}),
    )
    if major >= 10:
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    return module
