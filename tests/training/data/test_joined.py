"""Several datasets read as one."""

import pickle

import pytest

from fastdrive_node.errors import InputError
from fastdrive_training.data.adapters import dataset_identity, open_source
from fastdrive_training.data.adapters.joined import JoinedSource
from tests.training.tiny_nuscenes import write_dataset


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("joined") / "tiny", scenes=3, keyframes=3)
    return [open_source(root, split) for split in ("train", "val")]


def test_items_come_one_source_after_the_other(sources) -> None:
    joined = JoinedSource(sources)
    first, second = sources
    assert len(joined) == len(first) + len(second)
    assert joined.names == [*first.names, *second.names] and joined.scenes == [*first.scenes, *second.scenes]
    assert [joined[index].name for index in range(len(joined))] == joined.names
    with pytest.raises(IndexError):
        joined[len(joined)]
    assert pickle.loads(pickle.dumps(joined)).names == joined.names


def test_the_identity_changes_with_either_source(sources) -> None:
    first, second = sources
    identities = {dataset_identity(JoinedSource(each)) for each in ([first, second], [second, first], [first])}
    assert len(identities) == 3


def test_a_dataset_that_is_named_twice_is_refused(sources) -> None:
    with pytest.raises(InputError, match=r"is in .* too; name each dataset once"):
        JoinedSource([sources[0], open_source(sources[0].root, "train")])


def test_other_cameras_are_refused(sources) -> None:
    one = open_source(sources[1].root, "val", cameras=("CAM_FRONT",))
    with pytest.raises(InputError, match="its cameras are not those of"):
        JoinedSource([sources[0], one])
