"""The picture of the eight tasks."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fusionbench_lite.data import contact_sheet, mini


def test_a_row_per_task(tmp_path):
    path = contact_sheet.draw(tmp_path / "sheet.png", columns=4)
    with Image.open(path) as picture:
        width, height = picture.size
        assert height > width * len(mini.names()) / 8
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
