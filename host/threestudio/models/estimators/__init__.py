"""Where along a ray to look."""

from threestudio.models.estimators.importance import ImportanceEstimator, importance_samples
from threestudio.models.estimators.occupancy import OccupancyGrid, occupancy_grid
from threestudio.models.estimators.samples import Samples

__all__ = ["ImportanceEstimator", "OccupancyGrid", "Samples", "importance_samples", "occupancy_grid"]
