"""Ratios and tables of the GPU suite's figures."""

from __future__ import annotations

from collections.abc import Iterable

from fastdrive_node.benchmark.timing import Timing, ratio

DROPS = (0.0, 0.25, 0.5, 0.75)
ENDS = (DROPS[0], DROPS[-1])  # of what takes long, and of graphs
STOCK = "transformers"


def ours_at(drop: float) -> str:
    """Name of this package's rows at a pruning ratio."""
    return f"ours_drop_{drop:g}"


def ratios(timings: dict[str, dict[str, Timing]]) -> dict:
    """How many times faster, by medians: than transformers, and at each ratio than this package without dropping."""
    against_stock = {"encode": {"ours": ratio(timings["encode"][STOCK], timings["encode"]["ours"])}}
    against_none = {}
    for stage in ("prefill", "decode_per_token", "end_to_end"):
        times = timings[stage]
        against_stock[stage] = {name: ratio(times[STOCK], ours) for name, ours in times.items() if name != STOCK}
        against_none[stage] = {name: ratio(times[_none(name)], times[name]) for name in _dropped(times)}
    rows, name = _dropped(timings["prefill"]), "prefill_with_pruner"
    against_stock[name] = {row: _with_pruner(timings, STOCK, row) for row in rows}
    against_none[name] = {row: _with_pruner(timings, _none(row), row) for row in rows}
    return {"transformers_over_ours": against_stock, "ours_drop_0_over_ours": against_none}


def _dropped(times: Iterable[str]) -> list[str]:
    """Rows with pruning."""
    return [name for name in times if name != STOCK and _none(name) != name]


def _none(name: str) -> str:
    """Row of the same variant without pruning."""
    drop = next(ours_at(drop) for drop in reversed(DROPS) if name.startswith(ours_at(drop)))
    return ours_at(DROPS[0]) + name.removeprefix(drop)


def _with_pruner(timings: dict[str, dict[str, Timing]], slow: str, name: str) -> float | None:
    """A prefill without pruning over pruner and prefill."""
    pruner = next(row for row in timings["prune"] if name.startswith(row))
    parts = [timings["prefill"][slow], timings["prefill"][name], timings["prune"][pruner]]
    if any(part.error is not None for part in parts):
        return None
    whole, prefill, prune = (part.median_ms for part in parts)
    return round(whole / (prefill + prune), 3)


def table(report: dict) -> str:
    """Medians in lines for people, in ms."""
    lines = [f"{report['machine']['device']}, {report['dtype']}"]
    for size, entry in report["sizes"].items():
        for scene, figures in entry.get("scenes", {}).items():
            lines.append(f"{size} {scene}: {figures.get('visual_tokens')} visual tokens {figures.get('error', '')}")
            for dtype, found in figures.get("agreement", {}).items():
                lines.append(f"  same tokens in {dtype}: {found.get('same_tokens', found.get('error'))}")
            for stage, rows in figures.get("stages", {}).items():
                cells = (f"{name} {times.get('median_ms', 'failed')}" for name, times in rows.items())
                lines.append(f"  {stage}: {', '.join(cells)}")
            for stage, rows in figures.get("ratios", {}).get("ours_drop_0_over_ours", {}).items():
                lines.append(
                    f"  no drop over drop, {stage}: {', '.join(f'{row} {value}' for row, value in rows.items())}"
                )
        for scene, found in entry.get("engines", {}).items():
            lines += [f"{size} {scene}: engines {found.get('error', '')}", *engine_lines(found)]
        if "error" in entry:
            lines.append(f"{size}: {entry['error']}")
    return "\n".join(lines)


def engine_lines(found: dict) -> list[str]:
    """One line for each precision."""
    lines = []
    for precision, row in found.get("rows", {}).items():
        trt = row.get("tensorrt", {})
        medians = {name: times.get("median_ms", "failed") for name, times in row.get("latency", {}).items()}
        for name, key in (("tensorrt", "latency"), ("tensorrt_cuda_graph", "latency_cuda_graph")):
            if "wall" in trt.get(key, {}):
                medians[name] = trt[key]["wall"]["median_ms"]
        cosine = trt.get("against_torch", {}).get("cosine")
        note = trt.get("error") or trt.get("skipped") or f"cosine of TensorRT {cosine:.6f}" if trt else ""
        cells = ", ".join(f"{name} {value}" for name, value in medians.items())
        lines.append(f"  {precision}: {row.get('error', cells)}; {note}")
    return lines
