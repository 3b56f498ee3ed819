from __future__ import annotations

import numpy as np
import pytest

from fastdrive_sim.shapes import shape_of
from fastdrive_sim.types import KINDS, Thing


def thing(kind: str, **more) -> Thing:
    size = {"building": (10.0, 12.0, 8.0), "billboard": (0.4, 6.0, 5.0)}.get(kind, (2.0, 1.0, 3.0))
    return Thing(**{"instance": 1, "kind": kind, "x": 0, "y": 0, "yaw": 0, "size": size, "color": (1, 2, 3), **more})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", range(6))
def test_mesh_is_consistent_and_turned_outwards(kind, variant):
    mesh, scale = shape_of(thing(kind, variant=variant), 0.0)
    count = len(mesh.position)
    for array in (mesh.normal, mesh.color, mesh.tint, mesh.glow, mesh.uv, mesh.layer):
        assert len(array) == count
    assert np.all(mesh.triangles >= 0) and np.all(mesh.triangles < count)
    np.testing.assert_allclose(np.linalg.norm(mesh.normal, axis=1), 1, atol=1e-5)
    a, b, c = (mesh.position[mesh.triangles[:, k]] * np.array(scale, np.float32) for k in range(3))
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    assert volume > 0


@pytest.mark.parametrize("kind", ["car", "truck", "bus", "pedestrian", "barrier", "traffic_cone", "building"])
def test_mesh_fills_the_size_of_the_thing(kind):
    target = thing(kind, variant=2)
    mesh, scale = shape_of(target, 0.0)
    extent = np.ptp(mesh.position * np.array(scale), axis=0)
    np.testing.assert_allclose(extent[2], target.size[2], rtol=0.08)
    assert np.all(extent[:2] <= np.array(target.size[:2]) * 1.08)
    assert np.all(extent[:2] >= np.array(target.size[:2]) * 0.4)


def test_walking_moves_the_legs_and_standing_does_not():
    walker = thing("pedestrian", speed=1.4)
    poses = {shape_of(walker, 0.1 * k)[0].position.tobytes() for k in range(20)}
    assert len(poses) == 3
    assert len({shape_of(thing("pedestrian"), 0.1 * k)[0].position.tobytes() for k in range(20)}) == 1
