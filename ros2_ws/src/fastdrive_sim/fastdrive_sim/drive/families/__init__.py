"""The families of scenarios by name. A new one is a file here with a subclass of ``Family``, and an entry below."""

from fastdrive_sim.drive.families.base import Family
from fastdrive_sim.drive.families.bend import SharpBend
from fastdrive_sim.drive.families.crossing_pedestrian import CrossingPedestrian
from fastdrive_sim.drive.families.cut_in import CutIn
from fastdrive_sim.drive.families.cyclist import Cyclist
from fastdrive_sim.drive.families.dense_traffic import DenseTraffic
from fastdrive_sim.drive.families.hard_braking_lead import HardBrakingLead
from fastdrive_sim.drive.families.hidden_pedestrian import HiddenPedestrian
from fastdrive_sim.drive.families.junction import CommandedJunction
from fastdrive_sim.drive.families.merge import Merge
from fastdrive_sim.drive.families.overtaken import Overtaken
from fastdrive_sim.drive.families.red_light import RedLight
from fastdrive_sim.drive.families.road_works import RoadWorks
from fastdrive_sim.drive.families.stopped_lead import StoppedLead
from fastdrive_sim.drive.families.unprotected_turn import UnprotectedTurn

_ALL: tuple[Family, ...] = (
    StoppedLead(),
    HardBrakingLead(),
    CutIn(),
    CrossingPedestrian(),
    HiddenPedestrian(),
    Cyclist(),
    RedLight(),
    UnprotectedTurn(),
    SharpBend(),
    CommandedJunction(),
    Merge(),
    DenseTraffic(),
    RoadWorks(),
    Overtaken(),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}

__all__ = ["FAMILIES", "Family"]
