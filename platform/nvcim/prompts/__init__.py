"""NVCiM-PT: buffer, representative selection, noise-aware tuning, autoencoder, prompt memory, scaled search.

Source: Qin et al., NVCiM-PT, DATE 2025 (arXiv 2411.08244).
"""
