"""The optical processing unit: its physics, and what is built on random projections with or without one."""

from decentral.optical.calibration import calibrate, calibration_frames
from decentral.optical.camera import IDEAL, Camera
from decentral.optical.encoders import BitPlanes, Encoder, Ternary, Thermometer, Threshold
from decentral.optical.unit import Calibration, NotCalibrated, OpticalUnit

__all__ = [
    "IDEAL",
    "BitPlanes",
    "Calibration",
    "Camera",
    "Encoder",
    "NotCalibrated",
    "OpticalUnit",
    "Ternary",
    "Thermometer",
    "Threshold",
    "calibrate",
    "calibration_frames",
]
