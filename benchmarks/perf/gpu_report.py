"""Ratios and tables of the GPU suite's figures."""

from __future__ import annotations

from fastdrive_node.benchmark.timing import Timing, ratio

DROPS = (0.0, 0.25, 0.5, 0.75)
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
        against_none[stage] = {
            ours_at(drop): ratio(times[ours_at(0.0)], times[ours_at(drop)]) for drop in DROPS if drop
        }
    against_stock["prefill_with_pruner"] = {
        ours_at(drop): _with_pruner(timings, ours_at(drop)) for drop in DROPS if drop
    }
    return {"transformers_over_ours": against_stock, "ours_drop_0_over_ours": against_none}


def _with_pruner(timings: dict[str, dict[str, Timing]], name: str) -> float | None:
    """transformers' prefill over this package's pruner and prefill."""
    parts = [timings["prefill"][STOCK], timings["prefill"][name], timings["prune"][name]]
    if any(part.error is not None for part in parts):
        return None
    stock, prefill, prune = (part.median_ms for part in parts)
    return round(stock / (prefill + prune), 3)


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
