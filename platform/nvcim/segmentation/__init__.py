"""Segmentation of touching objects: residual FCN, training, prediction, and the GlaS contest's metrics."""

from nvcim.segmentation.fcn import FCNSettings, ResidualFCN, load_fcn, save_fcn
from nvcim.segmentation.instances import PredictionSettings, predict
from nvcim.segmentation.metrics import (
    ObjectScores,
    SetScores,
    object_dice,
    object_f1,
    object_hausdorff,
    score_pair,
    score_set,
)
from nvcim.segmentation.overlays import overlay
from nvcim.segmentation.prediction_files import predict_files
from nvcim.segmentation.scoring_files import score_folders
from nvcim.segmentation.training import TrainingLog, TrainingSettings, train
from nvcim.segmentation.training_files import train_on_folder

__all__ = [
    "FCNSettings",
    "ObjectScores",
    "PredictionSettings",
    "ResidualFCN",
    "SetScores",
    "TrainingLog",
    "TrainingSettings",
    "load_fcn",
    "object_dice",
    "object_f1",
    "object_hausdorff",
    "overlay",
    "predict",
    "predict_files",
    "save_fcn",
    "score_folders",
    "score_pair",
    "score_set",
    "train",
    "train_on_folder",
]
