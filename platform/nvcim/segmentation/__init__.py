"""Segmentation of touching objects: residual FCN, training, prediction, and the GlaS contest's metrics."""

from nvcim.segmentation.annotation_rounds import Round, RoundsSettings, annotation_sets, run_rounds
from nvcim.segmentation.architectures import NetworkSettings, make_network, network_settings_from
from nvcim.segmentation.ensemble import MemberJob, TrainMembers, load_members, train_member, train_members
from nvcim.segmentation.fcn import PAPER_FCN, FCNSettings, ResidualFCN
from nvcim.segmentation.inference import (
    PredictionSettings,
    predict_probabilities,
    predict_with_descriptor,
)
from nvcim.segmentation.instances import FoundObjects, find_objects, predict
from nvcim.segmentation.mask_scores import MaskScores, MaskSetScores, score_masks
from nvcim.segmentation.metrics import (
    ObjectScores,
    SetScores,
    object_dice,
    object_f1,
    object_hausdorff,
    score_pair,
    score_set,
)
from nvcim.segmentation.model_files import load_fcn, save_fcn
from nvcim.segmentation.network import CLASSES, SegmentationNetwork, normalise_colours
from nvcim.segmentation.overlays import overlay
from nvcim.segmentation.panoptic import JaccardScores, PanopticScores, score_jaccard, score_panoptic
from nvcim.segmentation.pixel_metrics import PixelScores, score_pixels
from nvcim.segmentation.prediction_files import predict_files
from nvcim.segmentation.scoring_files import score_folders, write_scores
from nvcim.segmentation.suggestive import Suggestion, SuggestionSettings, suggest
from nvcim.segmentation.training import TrainingLog, TrainingSettings, train
from nvcim.segmentation.training_files import train_on_folder
from nvcim.segmentation.unet import UNet, UNetSettings

__all__ = [
    "CLASSES",
    "PAPER_FCN",
    "FCNSettings",
    "FoundObjects",
    "JaccardScores",
    "MaskScores",
    "MaskSetScores",
    "MemberJob",
    "NetworkSettings",
    "ObjectScores",
    "PanopticScores",
    "PixelScores",
    "PredictionSettings",
    "ResidualFCN",
    "Round",
    "RoundsSettings",
    "SegmentationNetwork",
    "SetScores",
    "Suggestion",
    "SuggestionSettings",
    "TrainMembers",
    "TrainingLog",
    "TrainingSettings",
    "UNet",
    "UNetSettings",
    "annotation_sets",
    "find_objects",
    "load_fcn",
    "load_members",
    "make_network",
    "network_settings_from",
    "normalise_colours",
    "object_dice",
    "object_f1",
    "object_hausdorff",
    "overlay",
    "predict",
    "predict_files",
    "predict_probabilities",
    "predict_with_descriptor",
    "run_rounds",
    "save_fcn",
    "score_folders",
    "score_jaccard",
    "score_masks",
    "score_pair",
    "score_panoptic",
    "score_pixels",
    "score_set",
    "suggest",
    "train",
    "train_member",
    "train_members",
    "train_on_folder",
    "write_scores",
]
