"""A language model with substitutes for CUDA graphs, on a CPU."""

from torch.utils._python_dispatch import _disable_current_modes

from fastdrive_node.families.qwen2_5_vl.cuda_graphs import GraphedLanguage


class Replay:
    """Runs what it was captured with. As of a CUDA graph, a dispatch mode does not see its operations."""

    def __init__(self, run):
        self.run = run

    def replay(self):
        with _disable_current_modes():
            self.run()


class ReplayedLanguage(GraphedLanguage):
    """Its graphs are replays, which write their logits to one place."""

    captured = 0

    def _capture(self, run):
        self.captured += 1
        run()
        return Replay(run)

    def _run_prompt(self, call, static):
        self._in_place(call, lambda: super(ReplayedLanguage, self)._run_prompt(call, static))

    def _run_step(self, call, static):
        self._in_place(call, lambda: super(ReplayedLanguage, self)._run_step(call, static))

    def _in_place(self, call, run):
        before = getattr(call, "logits", None)
        run()
        if before is not None:
            call.logits = before.copy_(call.logits)
