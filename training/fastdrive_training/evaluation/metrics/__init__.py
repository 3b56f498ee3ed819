"""Open-loop planning figures in every convention in use. Pure: numpy, shapely, and OpenCV's polygon fill.

Everything is in the ego frame of the keyframe (x forward, y left, meters), six steps of 0.5 s. A box is
[x, y, yaw, length, width]. Steps are judged one by one (bool [points]); ``horizons`` turns them into the figures at 1,
2 and 3 s by one of the three ways of counting.
"""

from fastdrive_training.data.drivable import DrivableArea, EgoFrame
from fastdrive_training.evaluation.metrics.drivable import boundary_lines, off_drivable_steps
from fastdrive_training.evaluation.metrics.horizons import (
    Obstacles,
    any_to_t,
    at_metric_steps,
    at_t,
    collision_steps,
    l2_at_t,
    l2_avg_to_t,
    mean_to_t,
    step_errors,
)
from fastdrive_training.evaluation.metrics.judge import Judgement, Surroundings, judge_plan
from fastdrive_training.evaluation.metrics.rasters import (
    RASTERS,
    BevPlannerRaster,
    HalfMetreRaster,
    raster_collision_steps,
)

__all__ = [
    "RASTERS",
    "BevPlannerRaster",
    "DrivableArea",
    "EgoFrame",
    "HalfMetreRaster",
    "Judgement",
    "Obstacles",
    "Surroundings",
    "any_to_t",
    "at_metric_steps",
    "at_t",
    "boundary_lines",
    "collision_steps",
    "judge_plan",
    "l2_at_t",
    "l2_avg_to_t",
    "mean_to_t",
    "off_drivable_steps",
    "raster_collision_steps",
    "step_errors",
]
