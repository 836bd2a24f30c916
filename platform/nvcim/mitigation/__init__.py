"""Mitigation of write noise for what a prompt memory stores: none, selective write-verify, CxDNN, CorrectNet.

The papers adapt the weights of neural networks; here the stored numbers are the codes of virtual tokens. NVCiM-PT
compares with these methods but does not say how it adapted them, so every adaptation is ours and its file says how.
"""

from nvcim.mitigation.base import Correction, Mitigation, Perturbation
from nvcim.mitigation.registry import MITIGATIONS, get_mitigation

__all__ = ["MITIGATIONS", "Correction", "Mitigation", "Perturbation", "get_mitigation"]
