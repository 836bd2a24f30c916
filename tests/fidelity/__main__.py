"""`python -m tests.fidelity` writes docs/fidelity.md anew."""

import torch

from tests.fidelity.report import PAGE, page

torch.set_num_threads(1)
PAGE.write_text(page(), encoding="utf-8")
print(f"{PAGE} is written")
