"""Everything needed to resume a training: parts that the ranks write side by side, and an index that makes
them a checkpoint, in a folder that all lengths of the training share.

    000000000512-000003.json                                            the index, written last
    000000000512-000003.5f0c1e2a9b3d4c6e.00000-of-00002.safetensors     what rank 0 wrote
    000000000512-000003.5f0c1e2a9b3d4c6e.00001-of-00002.safetensors     what rank 1 wrote

Names say how many images were seen, under which lease, and in which attempt. The furthest one that is whole
wins; a torn or altered one is as good as none. Any process may die at any point of a write.
"""

from pipelines.training.checkpoints.mark import Checkpoint, Damaged, Mark
from pipelines.training.checkpoints.restoring import newest, read, restore
from pipelines.training.checkpoints.retention import prune
from pipelines.training.checkpoints.writing import Writer, save

__all__ = ["Checkpoint", "Damaged", "Mark", "Writer", "newest", "prune", "read", "restore", "save"]
