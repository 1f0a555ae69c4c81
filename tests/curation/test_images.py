import hashlib

import cv2
import numpy as np
import pytest

from curation.images import (
    DamagedFrame,
    decode_image,
    encode_jpeg,
    encode_png,
    read_image,
    read_verified,
    shrink,
)
from curation.storage import Folder
from tests.support import drawn

IMAGE = (
    np.dstack([drawn.textured_image(seed, 320, 200) for seed in range(3)]).round().astype(np.uint8)
)


def test_png_is_decoded_to_the_same_pixels():
    assert np.array_equal(decode_image(encode_png(IMAGE), "a.png"), IMAGE)
    grey = decode_image(encode_png(IMAGE[..., 0]), "a.png", cv2.IMREAD_UNCHANGED)
    assert np.array_equal(grey, IMAGE[..., 0])


def test_jpeg_of_higher_quality_is_closer():
    low, high = (decode_image(encode_jpeg(IMAGE, quality), "a.jpg") for quality in (20, 95))
    assert cv2.PSNR(IMAGE, high) > cv2.PSNR(IMAGE, low) > 20


@pytest.mark.parametrize("data", [b"", b"text"])
def test_unreadable_image_is_an_error_with_its_name(data):
    with pytest.raises(DamagedFrame, match=r"a\.jpg is not a readable image"):
        decode_image(data, "a.jpg")


def test_image_is_reduced_to_the_long_side_and_never_enlarged():
    image = np.zeros((300, 900, 3), np.uint8)
    assert shrink(image, 300).shape == (100, 300, 3)
    assert shrink(image.transpose(1, 0, 2), 300).shape == (300, 100, 3)
    assert shrink(image, 900) is image
    assert shrink(np.zeros((1, 500), np.uint8), 100).shape == (1, 100)


def test_stored_key_frame_is_read_by_the_name_in_its_row():
    files = {"key_frames/ab/abcd_2.jpg": encode_png(np.full((4, 4, 3), 7, np.uint8))}
    segment = {"start_s": 1.0, "key_frame": "key_frames/ab/abcd_2.jpg", "next_frame": None}
    assert read_image(files.__getitem__, segment).mean() == 7
    with pytest.raises(ValueError, match=r"no next frame was stored for the segment at 1\.0 s"):
        read_image(files.__getitem__, segment, "next_frame")


def test_key_frame_that_changed_after_scoring_is_an_error():
    files = {"a.jpg": b"scored"}
    sha256 = hashlib.sha256(b"scored").hexdigest()
    assert read_verified(files.__getitem__, "a.jpg", sha256) == b"scored"
    files["a.jpg"] = b"other"
    with pytest.raises(DamagedFrame, match=r"a\.jpg is not the frame that was scored.* retry_"):
        read_verified(files.__getitem__, "a.jpg", sha256)
    segment = {"next_frame": "a.jpg", "next_frame_sha256": sha256}
    with pytest.raises(DamagedFrame, match=r"a\.jpg is not the frame that was scored.* retry_"):
        read_image(files.__getitem__, segment, "next_frame")


@pytest.mark.parametrize("name", ["/etc/hostname", "../a.jpg", "key_frames/../../a.jpg", "a\0.jpg"])
def test_name_outside_the_ledger_is_not_read(name):
    with pytest.raises(DamagedFrame, match="is outside the ledger"):
        read_verified(pytest.fail, name, None)


def test_missing_key_frame_is_an_error_that_names_the_fix(tmp_path):
    segment = {"start_s": 1.0, "key_frame": "a.jpg"}
    with pytest.raises(DamagedFrame, match=r"a\.jpg is missing; score with retry_failed=true"):
        read_image(Folder(str(tmp_path)).read, segment)
