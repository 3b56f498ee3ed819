"""Work that is a map over items (images, samples, runs): in this process, or on the workers of a Ray cluster.

A worker makes a stream of results from items. Only the caller of :func:`map_items` writes files and leaves out what is
finished, so that a run can be cut off and goes on when it is called again, here or on a cluster.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from fastdrive_node.errors import ClusterError, FastDriveError, UsageError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Work = Callable[[Iterable[ItemT]], Iterable[ResultT]]
LOCAL = re.compile(r"local(?::([1-9]\d*))?")
ADDRESS = re.compile(r"auto|(?!local:)(?:ray://)?[\w.\[\]:-]+:\d+")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process has joined."""

    address: str  # as it was given
    device: str  # of each worker: ``cuda`` or ``cpu``
    workers: int  # processes that work at a time
    cpus: float  # that Ray counts for each
    gpus: float  # likewise; below 1 where several share one


@contextmanager
def open_cluster(address: str | None, device: str = "auto") -> Iterator[Cluster | None]:
    """Join a Ray cluster for a block; without an address there is none, and work stays in this process.

    On GPUs there is a worker for each; without, one for each machine, with all its cores. ``local:N`` has N.

    Args:
        address: ``local`` or ``local:N`` (started on this machine for the block), ``auto`` (the cluster that runs
            here), ``ray://HOST:PORT`` or ``HOST:PORT``.
        device: ``auto``, ``cuda`` or ``cpu``.

    Raises:
        UsageError: no address of these forms, or a device with an index.
        ClusterError: no cluster answers, or it has no GPU where ``cuda`` is asked for.
        ModuleNotFoundError: Ray is not installed.
    """
    if address is None:
        yield None
        return
    local = LOCAL.fullmatch(address)
    if not local and not ADDRESS.fullmatch(address):
        raise UsageError(f"--ray {address}: use auto, local, local:2, ray://HOST:10001 or HOST:6379")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: with --ray, use auto, cpu or cuda; Ray gives each worker its GPU")
    ray = _ray()
    joined = ray.is_initialized()  # by a caller, who leaves it too
    if not joined:
        _join(address, int(local[1]) if local and local[1] else None, bool(local))
    try:
        yield _workers(address, device, int(local[1]) if local and local[1] else None)
    finally:
        if not joined:
            ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports to its makers
    import ray  # pyright: ignore[reportMissingImports]

    return ray


def _join(address: str, cpus: int | None, local: bool) -> None:
    ray = _ray()
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    try:
        if local:
            ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, gRPC's own
        reason = " ".join(str(error).split())[:200]
        hint = "start one with `ray start --head`, or use local"
        if address.startswith("ray://"):
            hint += "; one with other versions of Python or Ray, or that asks for a token, refuses too"
        raise ClusterError(f"--ray {address}: no Ray cluster answers ({reason}); {hint}") from error


def _workers(address: str, device: str, wanted: int | None) -> Cluster:
    ray = _ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "cuda" and not gpus:
        raise ClusterError(f"--device cuda: the Ray cluster {address} has no GPU; use auto or cpu")
    if gpus and device != "cpu":
        workers = wanted or gpus
        return Cluster(address, "cuda", workers, 1, min(1.0, gpus / workers))
    cores = int(min((node["CPU"] for node in nodes if node.get("CPU")), default=1))
    return Cluster(address, "cpu", wanted or len(nodes), 1 if wanted else cores, 0)


def map_items(
    make: Callable[[], Work[ItemT, ResultT]], items: Iterable[ItemT], cluster: Cluster | None = None, chunk: int = 1
) -> Iterator[ResultT]:
    """The results of all items, as they come: in the items' order in this process, in any order from a cluster.

    Args:
        make: builds a worker, once in each process: it loads the models. A worker turns items into results and may
            read ahead. On a cluster, ``make``, items and results are pickled.
        items: read as workers become free; the text of each (``str``) names it in errors.
        cluster: None works here, on all items as one stream.
        chunk: items that a worker of the cluster gets at a time.

    Raises:
        FastDriveError: what a worker raised, its text led by the items that it had.
        ClusterError: a worker died, or raised something else.
    """
    if cluster is None:
        yield from make()(items)
        return
    ray = _ray()
    actor = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus)(_Worker)
    remaining = iter(items)
    actors: list[Any] = []
    busy: dict[Any, tuple[Any, list[ItemT]]] = {}  # by the reference of the next result: the actor, and its items

    def start(one: Any) -> None:
        if part := list(islice(remaining, chunk)):
            busy[one.take.remote(part)] = one, part

    try:
        shared = ray.put(make)  # once, not once a worker
        for _ in range(cluster.workers):
            before = len(busy)
            actors.append(actor.remote(shared, os.getcwd()))
            start(actors[-1])
            if len(busy) == before:
                break  # fewer items than workers
        while busy:
            ready, _ = ray.wait(list(busy), num_returns=1)
            one, part = busy.pop(ready[0])
            more, result = _result(ready[0], part)
            if not more:
                start(one)
                continue
            busy[one.take.remote(None)] = one, part  # it works on while the result is used
            yield result
    finally:
        for one in actors:
            ray.kill(one)


class _Worker:
    """In a process of the cluster. Results are asked for one by one: Ray's client has no streams."""

    def __init__(self, make: Callable[[], Work[Any, Any]], folder: str):
        self._make, self._work = make, None
        if os.path.isdir(folder):
            os.chdir(folder)  # of the caller, whose paths may be relative
        self._results: Iterator[Any] = iter(())

    def take(self, items: list[Any] | None) -> tuple[bool, Any]:
        """Begin with these items, or go on. Returns (True, the next result), or (False, None) after the last."""
        if items is not None:
            self._work = self._work or self._make()  # here, where an error has a cause
            self._results = iter(self._work(items))
        for result in self._results:
            return True, result
        return False, None


def _result(reference: Any, items: list[Any]) -> tuple[bool, Any]:
    ray = _ray()
    where = str(items[0]) if len(items) == 1 else f"{items[0]} to {items[-1]}"
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FastDriveError):
            raise type(cause)(f"{where}: {cause}") from None
        reason = f"{type(cause).__name__}: {cause}"
        raise ClusterError(f"{where}: a Ray worker failed ({' '.join(reason.split())[:300]})") from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"{where}: a Ray worker died ({reason}); finished items are kept, run again and it goes on"
        ) from error
